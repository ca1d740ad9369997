import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.errors import UserError
from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.params import TrainingParams
from cocomix.runtime import runtime
from cocomix.training import ConceptMixing, CurveRow, NextToken, Objective, Training, WindowData
from cocomix.training.loop import adamw, learning_rate

PARAMS = TrainingParams(
    steps=12, batch_size=6, learning_rate=1e-2, eval_every=5, eval_windows=8, checkpoint_every=4, warmup_share=0.25
)
SHAPE = {"vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0}


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")


def ntp(dropout: float = 0.0) -> NextToken:
    torch.manual_seed(0)
    return NextToken(GPT2LMHeadModel(GPT2Config(**SHAPE, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)))


def cocomix(dropout: float = 0.0) -> ConceptMixing:
    torch.manual_seed(0)
    shape = SHAPE | {"num_concepts": 24, "concept_layer": 1, "concept_k": 4}
    config = CoCoMixConfig(**shape, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    return ConceptMixing(CoCoMixForCausalLM(config), concept_weight=0.3)


def data(seed: int, labelled: bool) -> WindowData:
    generator = np.random.default_rng(seed)
    windows = (generator.integers(0, 32, (40, 1)) + np.arange(8)) % 32
    labels = generator.integers(0, 24, (40, 8, 3)).astype(np.uint16)
    labels[generator.random(labels.shape) < 0.3] = np.iinfo(np.uint16).max
    return WindowData(windows.astype(np.uint16), labels if labelled else None)


def training(objective: Objective, folder: Path, params: TrainingParams = PARAMS) -> Training:
    labelled = isinstance(objective, ConceptMixing)
    folder.mkdir(exist_ok=True)
    return Training(objective, data(0, labelled), data(1, labelled), params, seed=3, folder=folder)


def timeless(curve: list[CurveRow]) -> list[CurveRow]:
    return [replace(row, seconds=0.0) for row in curve]


@pytest.mark.parametrize("make", [ntp, cocomix])
def test_the_loss_falls_and_the_curve_says_what_was_done(make: Callable[[], Objective], tmp_path: Path) -> None:
    curve = training(make(), tmp_path).run("test")
    assert [row.step for row in curve] == [5, 10, 12]
    assert [row.tokens for row in curve] == [5 * 48, 10 * 48, 12 * 48]
    assert curve[-1].validation_loss < curve[0].validation_loss < np.log(32) + 0.2
    assert (curve[-1].auxiliary_loss is None) == (make is ntp)


@pytest.mark.parametrize("make", [ntp, cocomix])
@pytest.mark.parametrize("stop_at", [1, 4, 6, 11])
def test_a_run_that_died_goes_on_to_the_same_bits(
    make: Callable[..., Objective], stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = make(dropout=0.1)
    expected = training(undisturbed, tmp_path / "undisturbed").run("test")

    class DiedError(Exception): ...

    step = Training._train_step

    def dying_step(self: Training) -> tuple[float, float]:
        if self._step == stop_at:
            raise DiedError
        return step(self)

    monkeypatch.setattr(Training, "_train_step", dying_step)
    with pytest.raises(DiedError):
        training(make(dropout=0.1), tmp_path / "killed").run("test")
    monkeypatch.setattr(Training, "_train_step", step)
    resumed = make(dropout=0.1)
    torch.manual_seed(99)  # whatever the state of the generator
    curve = training(resumed, tmp_path / "killed").run("test")
    assert timeless(curve) == timeless(expected)
    for name, weight in undisturbed.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


@pytest.mark.parametrize("make", [ntp, cocomix])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_change_nothing_but_rounding(
    make: Callable[[], Objective], micro_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make()
    training(whole, tmp_path / "whole").run("test")
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", str(micro_batch))
    runtime.cache_clear()
    parts = make()
    training(parts, tmp_path / "parts").run("test")
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(weight, parts.state_dict()[name], atol=2e-4, rtol=1e-3)


def test_a_gradient_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path) -> None:
    objective = ntp()
    with torch.no_grad():
        objective.model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"step 0: the loss is not finite \(windows \d+, .*checkpoint is none yet"):
        training(objective, tmp_path).run("test")


def test_more_processes_than_windows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(UserError, match="must not be fewer than the processes"):
        training(ntp(), tmp_path)


def test_weight_decay_is_on_matrices_only() -> None:
    objective = cocomix()
    decayed, kept = (group["params"] for group in adamw(objective, PARAMS).param_groups)
    assert all(each.ndim >= 2 for each in decayed)
    assert all(each.ndim == 1 for each in kept)
    assert len(decayed) + len(kept) == len(list(objective.parameters()))


def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine() -> None:
    rates = [learning_rate(PARAMS, step) for step in range(12)]
    assert rates[:3] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    assert rates[-1] == pytest.approx(1e-3)
    assert all(earlier >= later for earlier, later in itertools.pairwise(rates[2:]))
    assert rates[3 + 4] == pytest.approx(1e-3 + 0.5 * 9e-3)


def test_the_step_is_adamw_on_the_mean_loss_written_out(tmp_path: Path) -> None:
    objective, plain = cocomix(), cocomix()
    one_step = PARAMS.model_copy(update={"steps": 1, "eval_every": 1})
    run = training(objective, tmp_path, one_step)
    rows = run._order.batch(0)
    windows, labels = data(0, True).batch(rows)
    run.run("test")
    output = plain.model(windows, labels=windows)
    concept = torch.zeros(())
    positions = 0
    for z, wanted in zip(output.concept_logits.flatten(0, 1), labels.flatten(0, 1), strict=True):
        kept = wanted[wanted >= 0]
        if len(kept):
            concept = concept + torch.nn.functional.cross_entropy(z.expand(len(kept), -1), kept)
            positions += 1
    (output.loss + 0.3 * concept / positions).backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer = adamw(plain, one_step)
    optimizer.step()
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(weight, objective.state_dict()[name], atol=5e-5, rtol=1e-3)
