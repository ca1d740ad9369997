"""One step of the training loop, written out: the gradient of the mean loss, clipping, AdamW and its schedule."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.params import TrainingParams
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.window_data import WindowData
from cocomix.training.loop import TrainingCurveRow
from cocomix.training.objectives import ConceptMixing, Objective
from cocomix.training.optimizers import adamw
from cocomix.training.schedule import learning_rate
from tests.training.test_loop import PARAMS, cocomix, data, ntp, training


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")


class Run(NamedTuple):
    """A run, and what its optimiser was given in each step."""

    rows: list[np.ndarray]
    """Windows of each step."""
    gradients: list[dict[str, Tensor]]
    """By the weight's name."""
    curve: list[TrainingCurveRow]


def run_of(objective: Objective, folder: Path, params: TrainingParams) -> Run:
    run, gradients = training(objective, folder, params), list[dict[str, Tensor]]()
    rows = [run._order.batch(step) for step in range(params.steps)]
    run._optimizers[0].register_step_pre_hook(
        lambda *_: gradients.append(
            {name: each.grad.clone() for name, each in objective.named_parameters() if each.grad is not None}
        )
    )
    return Run(rows, gradients, run.run("test"))


def mean_losses(objective: Objective, kept: WindowData, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Means over the predicted tokens, and over the labelled positions: the next token's, and the concepts' loss."""
    batch = kept.batch(rows)
    windows = batch["windows"]
    output = objective.model(windows)
    tokens = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
    if not isinstance(objective, ConceptMixing):
        return tokens, torch.zeros(())
    concepts = []
    for z, wanted in zip(output.concept_logits.flatten(0, 1), batch["labels"].flatten(0, 1), strict=True):
        if len(here := wanted[wanted >= 0]):
            concepts.append(F.cross_entropy(z.expand(len(here), -1), here))
    return tokens, torch.stack(concepts).mean()


def gradient_of(objective: Objective, rows: np.ndarray) -> dict[str, Tensor]:
    """The gradient of the mean loss, in one pass."""
    tokens, concepts = mean_losses(objective, data(0, isinstance(objective, ConceptMixing)), rows)
    (tokens + 0.3 * concepts).backward()
    return {name: each.grad for name, each in objective.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("make", [ntp, cocomix])
@pytest.mark.parametrize("micro_batch", ["auto", "4", "1"])
def test_the_gradient_is_that_of_the_mean_loss_of_the_whole_batch(
    make: Callable[[], Objective], micro_batch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", micro_batch)
    runtime.cache_clear()
    run = run_of(make(), tmp_path, PARAMS.model_copy(update={"steps": 1, "clip": 1e30}))
    torch.testing.assert_close(run.gradients[0], gradient_of(make(), run.rows[0]), atol=1e-6, rtol=1e-4)


def test_the_gradient_is_scaled_down_to_the_largest_norm(tmp_path: Path) -> None:
    run = run_of(cocomix(), tmp_path, PARAMS.model_copy(update={"steps": 1, "clip": 0.05}))
    whole = gradient_of(cocomix(), run.rows[0])
    norm = torch.cat([each.flatten() for each in whole.values()]).norm()
    assert norm > 0.1
    expected = {name: 0.05 * each / norm for name, each in whole.items()}
    torch.testing.assert_close(run.gradients[0], expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_the_steps_are_adamw_with_warm_up_and_a_cosine_written_out(decay: str, tmp_path: Path) -> None:
    """Several steps: the first one of Adam is the same whatever its betas and the gradient's scale."""
    changes = {"steps": 6, "warmup_share": 1 / 3, "betas": (0.8, 0.7), "weight_decay": 0.5, "decay": decay}
    objective = cocomix()
    weights = {name: each.detach().double() for name, each in objective.named_parameters()}
    run = run_of(objective, tmp_path, PARAMS.model_copy(update=changes))
    mean, square = ({name: torch.zeros_like(each) for name, each in weights.items()} for _ in range(2))
    for step, share in enumerate([0.5, 1, 1, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25, 0.1]):
        rate = 1e-2 * share
        for name, gradient in run.gradients[step].items():
            mean[name] = 0.8 * mean[name] + 0.2 * gradient
            square[name] = 0.7 * square[name] + 0.3 * gradient.double() ** 2
            if weights[name].ndim >= 2 or decay == "all":
                weights[name] = weights[name] * (1 - rate * 0.5)
            unbiased = mean[name] / (1 - 0.8 ** (step + 1)), square[name] / (1 - 0.7 ** (step + 1))
            weights[name] = weights[name] - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    for name, weight in objective.named_parameters():
        torch.testing.assert_close(weight.double(), weights[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("make", [ntp, cocomix])
def test_the_losses_of_the_curve_are_means_over_what_is_predicted(
    make: Callable[[], Objective], tmp_path: Path
) -> None:
    objective = make()
    run = run_of(objective, tmp_path, PARAMS.model_copy(update={"steps": 1}))
    spread = np.arange(0, 40, 5)  # eval_windows: 8 of 40
    with torch.no_grad():
        before, _ = mean_losses(make(), data(0, make is cocomix), run.rows[0])
        tokens, concepts = mean_losses(objective.eval(), data(1, make is cocomix), spread)
    (row,) = run.curve
    assert row.train_loss == pytest.approx(before.item(), abs=1e-5)
    assert row.validation_loss == pytest.approx(tokens.item(), abs=1e-5)
    assert row.auxiliary == ({"concept": pytest.approx(concepts.item(), abs=1e-5)} if make is cocomix else {})


def test_each_step_drops_out_other_numbers(tmp_path: Path) -> None:
    objective, dropped = ntp(dropout=0.5), list[Tensor]()
    objective.model.transformer.drop.register_forward_hook(
        lambda module, _, output: dropped.append(output == 0) if module.training else None
    )
    run_of(objective, tmp_path, PARAMS)
    assert len(dropped) == PARAMS.steps
    assert not any(torch.equal(*pair) for pair in itertools.combinations(dropped, 2))


def test_all_weights_decay_where_that_is_asked_for() -> None:
    groups = adamw(cocomix(), PARAMS.model_copy(update={"decay": "all"})).param_groups
    assert {group["weight_decay"] for group in groups} == {PARAMS.weight_decay}


def test_weight_decay_is_on_matrices_only() -> None:
    objective = cocomix()
    decayed, kept = (group["params"] for group in adamw(objective, PARAMS).param_groups)
    assert all(each.ndim >= 2 for each in decayed)
    assert all(each.ndim == 1 for each in kept)
    assert len(decayed) + len(kept) == len(list(objective.parameters()))


def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine() -> None:
    rates = [learning_rate(PARAMS, step, 1e-2) for step in range(12)]
    assert rates[:3] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
    assert rates[-1] == pytest.approx(1e-3)
    assert all(earlier >= later for earlier, later in itertools.pairwise(rates[2:]))
    assert rates[3 + 4] == pytest.approx(1e-3 + 0.5 * 9e-3)
