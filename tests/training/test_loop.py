import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM, CoCoMixLlamaConfig, CoCoMixLlamaForCausalLM
from cocomix.params import KdParams, MtpParams, ScheduleParams, TrainingParams
from cocomix.plumbing import checkpoint
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.window_data import Drawn, DrawsByWindow, WindowData, WindowLabels
from cocomix.training import loop
from cocomix.training.distillation import Distillation
from cocomix.training.loop import Training, TrainingCurveRow, write_curve
from cocomix.training.objectives import ConceptMixing, HiddenMixing, Losses, MultiToken, Objective, Weighted
from cocomix.training.schedule import learning_rate
from tests.plumbing.test_mapped import is_read_at_random

PARAMS = TrainingParams(
    steps=12, batch_size=6, learning_rate=1e-2, eval_every=5, eval_windows=8, checkpoint_every=4, warmup_share=0.25
)
SHAPE = {"vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0}


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")


def ntp(dropout: float = 0.0) -> Objective:
    torch.manual_seed(0)
    return Objective(GPT2LMHeadModel(GPT2Config(**SHAPE, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)))


def cocomix(dropout: float = 0.0) -> ConceptMixing:
    torch.manual_seed(0)
    shape = SHAPE | {"num_concepts": 24, "concept_layer": 1, "concept_k": 4}
    config = CoCoMixConfig(**shape, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    return ConceptMixing(CoCoMixForCausalLM(config), Weighted(0.3))


def llama() -> ConceptMixing:
    torch.manual_seed(0)
    shape = {"vocab_size": 32, "max_position_embeddings": 8, "hidden_size": 16, "intermediate_size": 48}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0}
    config = CoCoMixLlamaConfig(**shape, qk_norm=True, num_concepts=24, concept_layer=1, concept_k=4)
    return ConceptMixing(CoCoMixLlamaForCausalLM(config), Weighted(0.3))


def base() -> GPT2LMHeadModel:
    torch.manual_seed(9)
    return GPT2LMHeadModel(GPT2Config(**SHAPE)).eval().requires_grad_(False)


def kd(dropout: float = 0.0) -> Objective:
    return Objective(ntp(dropout).model, Distillation(KdParams(kl_weight=0.4), base()))


def cached(dropout: float = 0.0) -> Objective:
    """Concepts and a sampled distribution at once, the latter in the first half of the steps."""
    params = KdParams(source="cached", kl_weight=0.4, leave_out=0.3, schedule=ScheduleParams(until=0.5))
    return ConceptMixing(cocomix(dropout).model, Weighted(0.3), Distillation(params))


def forced(dropout: float = 0.0) -> Objective:
    return ConceptMixing(cocomix(dropout).model, Weighted(0.3), teacher_forcing=0.4)


def mtp(dropout: float = 0.0) -> Objective:
    return MultiToken(ntp(dropout).model, MtpParams(tokens=3, weight=0.5))


def pause(dropout: float = 0.0) -> Objective:
    torch.manual_seed(0)
    shape = SHAPE | {"predicts": "nothing", "concept_layer": 1}
    config = CoCoMixConfig(**shape, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    return Objective(CoCoMixForCausalLM(config))


def hidden(dropout: float = 0.0) -> HiddenMixing:
    teacher = base()
    torch.manual_seed(0)
    shape = SHAPE | {"predicts": "hidden", "base_width": 16, "concept_layer": 1}
    config = CoCoMixConfig(**shape, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    return HiddenMixing(CoCoMixForCausalLM(config), teacher, 1, "l2", Weighted(0.3))


class Sampled(DrawsByWindow):
    """Draws of the base model's distribution, two at each position."""

    def __init__(self, windows: np.ndarray) -> None:
        logits = base()(torch.from_numpy(windows)).logits
        probabilities = logits.softmax(-1)
        ids = torch.multinomial(probabilities.flatten(0, 1), 2, generator=torch.manual_seed(1)).view(*windows.shape, 2)
        entropies = torch.special.entr(probabilities).sum(-1)
        self._drawn = Drawn(ids, torch.full(ids.shape, 0.5), entropies)

    def batch(self, rows: np.ndarray | slice) -> Drawn:
        return Drawn(*(each[torch.as_tensor(rows)] for each in self._drawn))


def data(seed: int, labelled: bool, drawn: bool = False) -> WindowData:
    generator = np.random.default_rng(seed)
    windows = (generator.integers(0, 32, (40, 1)) + np.arange(8)) % 32
    labels = generator.integers(0, 24, (40, 8, 3)).astype(np.uint16)
    labels[generator.random(labels.shape) < 0.3] = np.iinfo(np.uint16).max
    draws = Sampled(windows) if drawn else None
    return WindowData(windows.astype(np.uint16), WindowLabels(labels) if labelled else None, draws)


def training(objective: Objective, folder: Path, params: TrainingParams = PARAMS) -> Training:
    of = (isinstance(objective, ConceptMixing), "distillation" in objective.weights)
    folder.mkdir(exist_ok=True)
    return Training(objective, data(0, *of), data(1, *of), params, seed=3, folder=folder)


def timeless(curve: list[TrainingCurveRow]) -> list[TrainingCurveRow]:
    return [replace(row, seconds=0.0) for row in curve]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux shows what it has noted")
def test_the_kernel_knows_that_training_windows_are_read_at_random_and_validation_ones_are_not(tmp_path: Path) -> None:
    plain, paths = data(0, labelled=True), [tmp_path / f"{name}.npy" for name in ("windows", "labels", "validation")]
    assert plain.labels is not None
    for path, array in zip(paths, (plain.windows, plain.labels.concepts, plain.windows), strict=True):
        np.save(path, array)
    windows, labels, validation = (np.load(path, mmap_mode="r") for path in paths)
    train = WindowData(windows, WindowLabels(labels))
    Training(cocomix(), train, WindowData(validation, plain.labels), PARAMS, seed=3, folder=tmp_path)
    assert [is_read_at_random(path) for path in paths] == [True, True, False]


@pytest.mark.parametrize("make", [ntp, cocomix])
def test_the_loss_falls_and_the_curve_says_what_was_done(make: Callable[[], Objective], tmp_path: Path) -> None:
    curve = training(make(), tmp_path).run("test")
    assert [row.step for row in curve] == [5, 10, 12]
    assert [row.tokens for row in curve] == [5 * 48, 10 * 48, 12 * 48]
    assert curve[-1].validation_loss < curve[0].validation_loss < np.log(32) + 0.2
    assert [row.seconds for row in curve] == [round(row.seconds, 3) for row in curve]
    assert list(curve[-1].auxiliary) == ([] if make is ntp else ["concept"])


@pytest.mark.parametrize(
    ("make", "stop_at", "optimizer"),
    [
        *itertools.product([ntp, cocomix], [1, 4, 6, 11], ["adamw"]),
        *itertools.product([kd, pause, hidden, mtp, forced], [6], ["adamw"]),
        (cached, 3, "adamw"),
        (cached, 8, "adamw"),
        *itertools.product([cocomix, mtp], [1, 6], ["muon"]),
    ],
)
def test_a_run_that_died_goes_on_to_the_same_bits(
    make: Callable[..., Objective], stop_at: int, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = PARAMS.model_copy(update={"optimizer": optimizer})
    undisturbed = make(dropout=0.1)
    expected = training(undisturbed, tmp_path / "undisturbed", params).run("test")

    class DiedError(Exception): ...

    step = Training._train_step

    def dying_step(self: Training) -> tuple[float, float]:
        if self._step == stop_at:
            raise DiedError
        return step(self)

    monkeypatch.setattr(Training, "_train_step", dying_step)
    with pytest.raises(DiedError):
        training(make(dropout=0.1), tmp_path / "killed", params).run("test")
    monkeypatch.setattr(Training, "_train_step", step)
    resumed = make(dropout=0.1)
    torch.manual_seed(99)  # whatever the state of the generator
    curve = training(resumed, tmp_path / "killed", params).run("test")
    assert timeless(curve) == timeless(expected)
    for name, weight in undisturbed.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


@pytest.mark.parametrize("make", [ntp, kd, pause, cocomix, hidden, cached, mtp, forced])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_change_nothing_but_rounding(
    make: Callable[[], Objective], micro_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make()
    expected = training(whole, tmp_path / "whole").run("test")
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", str(micro_batch))
    runtime.cache_clear()
    parts, windows = make(), dict[bool, set[int]]()
    parts.register_forward_pre_hook(
        lambda each, _, batch: windows.setdefault(each.training, set()).add(len(batch["windows"])), with_kwargs=True
    )
    curve = training(parts, tmp_path / "parts").run("test")
    assert {each: max(sizes) for each, sizes in windows.items()} == {True: min(micro_batch, 3), False: micro_batch}
    assert [row.validation_loss for row in curve] == pytest.approx([row.validation_loss for row in expected], abs=1e-4)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(weight, parts.state_dict()[name], atol=2e-4, rtol=1e-3)


def test_the_windows_whose_labels_are_forced_are_spread_over_the_steps_whatever_the_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for micro_batch in ("auto", "4", "1"):
        monkeypatch.setenv("COCOMIX_MICRO_BATCH", micro_batch)
        runtime.cache_clear()
        seen = list[torch.Tensor]()
        objective = forced()
        objective.register_forward_pre_hook(
            lambda each, _, batch, seen=seen: seen.append(batch["forced_rows"]) if each.training else None,
            with_kwargs=True,
        )
        training(objective, tmp_path / micro_batch, PARAMS.model_copy(update={"steps": 2})).run("test")
        assert torch.cat(seen).tolist() == [*(0, 0, 1, 0, 1, 0), *(0, 1, 0, 1, 0, 0)]


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path) -> None:
    objective = ntp()
    with torch.no_grad():
        objective.model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"step 0: the loss is not finite \(windows \d+, .*checkpoint is none yet"):
        training(objective, tmp_path).run("test")


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(tmp_path: Path) -> None:
    objective = ntp()
    objective.model.transformer.wpe.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(UserError, match="step 0: the gradient is not finite"):
        training(objective, tmp_path).run("test")


def test_the_message_names_the_last_good_checkpoint_which_has_finite_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(self: Objective, **batch: Any) -> Losses:
        losses = forward(self, **batch)
        return losses._replace(tokens=losses.tokens * (math.inf if run._step == 9 and self.training else 1))

    forward = Objective.forward
    monkeypatch.setattr(Objective, "forward", poisoned)
    run = training(ntp(), tmp_path)
    with pytest.raises(UserError, match=r"step 9: the loss is not finite") as error:
        run.run("test")
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert str(newest) in str(error.value)
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == 8
    assert all(each.isfinite().all() for each in state["model"].values())


def test_memory_is_known_and_utilisation_where_the_peak_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(ntp(), tmp_path / "unknown")
    run.run("test")
    assert run.usage.peak_memory > 2**20
    assert run.usage.utilisation is None
    monkeypatch.setattr(loop, "peak_flops", lambda: 1e12)
    run = training(ntp(), tmp_path / "known")
    curve = run.run("test")
    assert run.usage.utilisation is not None
    # The curve rounds to milliseconds, of which this run takes few.
    assert curve[-1].flops / 1e12 / run.usage.utilisation == pytest.approx(curve[-1].seconds, abs=0.000501)


def test_tensorboard_shows_the_curve_and_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("COCOMIX_TENSORBOARD", str(tmp_path / "board"))
    runtime.cache_clear()
    curve = training(cocomix(), tmp_path / "run").run("test")
    events = EventAccumulator(str(tmp_path / "board" / "test")).Reload()
    shown = {each.step: each.value for each in events.Scalars("validation_loss")}
    assert shown == pytest.approx({row.step: row.validation_loss for row in curve})
    assert "concept_loss" in events.Tags()["scalars"]
    steps = {name: [each.value for each in events.Scalars(name)] for name in ("loss", "gradient_norm", "learning_rate")}
    assert steps["learning_rate"] == pytest.approx([learning_rate(PARAMS, step, 1e-2) for step in range(12)])
    assert sum(steps["loss"][:5]) / 5 == pytest.approx(curve[0].train_loss, abs=1e-5)
    assert min(steps["gradient_norm"]) > 0


def test_the_curves_losses_are_means_since_the_row_before_and_of_windows_spread_over_the_validation_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, losses, seen = Training._train_step, list[float](), list[torch.Tensor]()

    def noted(self: Training) -> tuple[float, float]:
        loss, norm = step(self)
        losses.append(loss)
        return loss, norm

    def see(objective: Objective, _: tuple[()], batch: dict[str, torch.Tensor]) -> None:
        if not objective.training:
            assert not torch.is_grad_enabled()
            seen.append(batch["windows"])

    monkeypatch.setattr(Training, "_train_step", noted)
    objective = ntp()
    objective.register_forward_pre_hook(see, with_kwargs=True)
    curve = training(objective, tmp_path).run("test")
    means = [np.mean(some) for some in (losses[:5], losses[5:10], losses[10:])]
    assert [row.train_loss for row in curve] == pytest.approx(means, abs=1e-6)
    expected = data(1, labelled=False).batch(np.arange(0, 40, 5))["windows"]
    assert torch.equal(torch.cat(seen), expected.repeat(3, 1))


def test_the_curves_auxiliary_loss_is_the_mean_over_the_supervised_positions(tmp_path: Path) -> None:
    objective = cocomix()
    curve = training(objective, tmp_path).run("test")
    batch = data(1, labelled=True).batch(np.arange(0, 40, 5))
    with torch.no_grad():
        losses = objective.eval()(**batch)
    supervised = int((batch["labels"] >= 0).any(-1).sum())
    assert curve[-1].auxiliary == {"concept": pytest.approx(float(losses.auxiliary["concept"]) / supervised, abs=1e-5)}


def test_a_checkpoint_is_there_after_the_first_step_where_one_is_due(tmp_path: Path) -> None:
    training(ntp(), tmp_path, PARAMS.model_copy(update={"steps": 1, "checkpoint_every": 1})).run("test")
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == 1


def test_each_step_and_each_point_of_the_curve_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = list[Mapping[str, float | None]]()
    monkeypatch.setattr(loop, "tensorboard", lambda _task, _step: nullcontext(shown.append))
    curve = training(cocomix(), tmp_path).run("test")
    assert [row for row in shown if "validation_loss" in row] == [row.columns() for row in curve]
    steps = [row for row in shown if "gradient_norm" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert [row["learning_rate"] for row in steps] == [learning_rate(PARAMS, step, 1e-2) for step in range(12)]


def test_a_run_under_way_has_written_its_curve_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, seen = Training._train_step, []

    def looked_at(self: Training) -> tuple[float, float]:
        path = tmp_path / "run/curve.csv"
        seen.append(path.read_text() if path.exists() else None)
        return step(self)

    monkeypatch.setattr(Training, "_train_step", looked_at)
    curve = training(ntp(), tmp_path / "run").run("test")
    write_curve(tmp_path / "expected.csv", curve[:1])
    assert seen == [None] * 5 + [(tmp_path / "expected.csv").read_text()] * 5 + [seen[-1]] * 2
    assert len(str(seen[-1]).splitlines()) == 3


@pytest.mark.parametrize("make", [ntp, kd, pause, cocomix, hidden, cached, mtp])
def test_activation_checkpointing_changes_nothing_but_rounding(
    make: Callable[..., Objective], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, again = make(dropout=0.1), make(dropout=0.1)
    expected = training(kept, tmp_path / "kept").run("test")
    monkeypatch.setenv("COCOMIX_ACTIVATION_CHECKPOINTING", "true")
    runtime.cache_clear()
    runs, blocks = list[int](), again.blocks_in_training()
    for number, block in enumerate(blocks):
        block.ln_1.register_forward_hook(lambda each, *_, number=number: runs.append(number) if each.training else None)
    curve = training(again, tmp_path / "again").run("test")
    assert Counter(runs) == dict.fromkeys(range(len(blocks)), 2 * PARAMS.steps)
    assert [row.validation_loss for row in curve] == pytest.approx([row.validation_loss for row in expected], abs=1e-4)
    for name, weight in kept.state_dict().items():
        torch.testing.assert_close(weight, again.state_dict()[name], atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("make", [ntp, cocomix])
def test_a_compiled_step_changes_nothing_but_rounding(
    make: Callable[[], Objective], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = training(make(), tmp_path / "eager").run("test")
    monkeypatch.setenv("COCOMIX_COMPILE", "true")
    runtime.cache_clear()
    compiled = training(make(), tmp_path / "compiled").run("test")
    assert compiled[-1].validation_loss == pytest.approx(expected[-1].validation_loss, abs=1e-3)


def test_more_processes_than_windows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(UserError, match="must not be fewer than the processes"):
        training(ntp(), tmp_path)


@pytest.mark.parametrize("changes", [{"batch_size": 7}, {"eval_windows": 7}])
def test_shares_of_processes_must_be_equal_with_fsdp(
    changes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("COCOMIX_SHARDING", "fsdp")
    with pytest.raises(UserError, match=r"multiples of the processes \(2\) with COCOMIX_SHARDING=fsdp$"):
        training(ntp(), tmp_path, PARAMS.model_copy(update=changes))


def test_the_curve_of_a_model_that_was_not_trained_has_no_points(tmp_path: Path) -> None:
    write_curve(tmp_path / "curve.csv", [])
    assert (tmp_path / "curve.csv").read_text().strip() == "step,tokens,flops,seconds,train_loss,validation_loss"
