"""Muon: its parameters, its steps written out, its state in a checkpoint, its FLOPs."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.plumbing import checkpoint
from cocomix.plumbing.runtime import runtime
from cocomix.shapes.models import block_matrices, deepened, dimensions, newton_schulz_flops
from cocomix.training.objectives import MultiToken, Objective
from cocomix.training.optimizers import Muon, optimizers
from tests.training.test_loop import (
    PARAMS,
    SHAPE,
    cached,
    cocomix,
    forced,
    hidden,
    kd,
    llama,
    mtp,
    ntp,
    pause,
    training,
)
from tests.training.test_step import run_of

MUON = PARAMS.model_copy(update={"optimizer": "muon"})
IN_BLOCKS = re.compile(r"model\.(transformer\.h|model\.layers)\.\d\.|blocks\.\d\.")


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")


def form(**changes: object) -> Callable[[], Objective]:
    shape = SHAPE | {"num_concepts": 24, "concept_layer": 1, "concept_k": 4, "base_width": 16}
    return lambda: Objective(CoCoMixForCausalLM(CoCoMixConfig(**shape | changes)))


FORMS = [
    *(form(mixing=mixing, gate=mixing != "none") for mixing in ("interleave", "interleave_with_state", "add", "none")),
    form(concept_head="equations", learned_scale=True, stop_gradient=True),
    form(predicts="hidden", mixing="none"),
    form(predicts="nothing", mixing="add", mlp_width=20),
]


@pytest.mark.parametrize("make", [ntp, kd, pause, cocomix, hidden, cached, mtp, forced, llama, *FORMS])
def test_muon_has_the_matrices_of_the_blocks_and_adamw_all_else(make: Callable[[], Objective]) -> None:
    objective = make()
    adamw, muon = ({*_weights(each)} for each in optimizers(objective, MUON))
    for name, each in objective.named_parameters():
        in_blocks = IN_BLOCKS.match(name) is not None and each.ndim == 2
        assert (each in muon, each in adamw) == (in_blocks, not in_blocks), name
    further = 2 if isinstance(objective, MultiToken) else 0
    assert len(muon) == (7 if make is llama else 4) * (2 + further)


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (cocomix, "compress"),
        (llama, "compress"),
        (hidden, "compress"),
        (form(predicts="nothing", mixing="add", mlp_width=20, gate=True), "mlp"),
        (form(mixing="none"), None),
        (pause, None),
        (ntp, None),
    ],
)
def test_the_layer_that_makes_the_mixed_vector_can_have_a_learning_rate_of_its_own(
    make: Callable[[], Objective], layer: str | None
) -> None:
    objective = make()
    objective.mixing_learning_rate = 4e-3
    (adamw,) = optimizers(objective, PARAMS)
    peaks = {each: group["peak"] for group in adamw.param_groups for each in group["params"]}
    for name, each in objective.named_parameters():
        assert peaks[each] == (4e-3 if f".mixer.{layer}." in name else 1e-2), name
    assert {*peaks.values()} == ({4e-3, 1e-2} if layer else {1e-2})


def test_adamw_has_all_parameters_where_muon_is_not_asked_for() -> None:
    objective = cocomix()
    (adamw,) = optimizers(objective, PARAMS)
    assert {*_weights(adamw)} == {*objective.parameters()}


@pytest.mark.parametrize("changes", [{}, {"muon_learning_rate": 3e-2, "weight_decay": 0.4, "decay": "all"}])
@pytest.mark.parametrize("make", [ntp, cocomix])
def test_the_steps_are_muon_and_adamw_written_out(
    make: Callable[[], Objective], changes: dict[str, object], tmp_path: Path
) -> None:
    params = MUON.model_copy(update={"steps": 5, "warmup_share": 0.4, **changes})
    objective = make()
    objective.mixing_learning_rate = 4e-3
    weights = {name: each.detach().double() for name, each in objective.named_parameters()}
    momenta = {name: torch.zeros_like(each) for name, each in weights.items()}
    squares = {name: torch.zeros_like(each) for name, each in weights.items()}
    run = run_of(objective, tmp_path, params)
    for step, share in enumerate([0.5, 1, 1, 0.1 + 0.9 * 0.5, 0.1]):
        for name, gradient in run.gradients[step].items():
            gradient, matrix = gradient.double(), weights[name].ndim == 2
            if matrix and IN_BLOCKS.match(name):
                rate = share * (params.muon_learning_rate or 1e-2)
                momenta[name] = 0.95 * momenta[name] + 0.05 * gradient
                update = _orthogonal(name, 0.95 * momenta[name] + 0.05 * gradient)
                decay = params.weight_decay
            else:
                rate = share * (4e-3 if ".compress." in name else 1e-2)
                momenta[name] = 0.9 * momenta[name] + 0.1 * gradient
                squares[name] = 0.95 * squares[name] + 0.05 * gradient**2
                root = (squares[name] / (1 - 0.95 ** (step + 1))).sqrt()
                update = momenta[name] / (1 - 0.9 ** (step + 1)) / (root + 1e-8)
                decay = params.weight_decay if matrix or params.decay == "all" else 0
            weights[name] = weights[name] * (1 - rate * decay) - rate * update
    for name, weight in objective.named_parameters():
        torch.testing.assert_close(weight.double(), weights[name], atol=2e-6, rtol=1e-4, msg=name)


def _orthogonal(name: str, momentum: Tensor) -> Tensor:
    """The update of a matrix before its learning rate: queries, keys and values apart."""
    parts = momentum.chunk(3, dim=1) if name.endswith("c_attn.weight") else [momentum]
    return torch.cat([_newton_schulz(each) * 0.2 * math.sqrt(max(each.shape)) for each in parts], dim=1)


def _newton_schulz(x: Tensor) -> Tensor:
    x = x / x.norm()
    for _ in range(5):
        product = x @ x.T
        x = 3.4445 * x - 4.775 * product @ x + 2.0315 * product @ product @ x
    return x


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_muon_multiplies_in_the_precision_of_the_run(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_PRECISION", precision)
    runtime.cache_clear()
    objective = ntp()
    _, muon = optimizers(objective, MUON)
    weight = objective.model.transformer.h[0].mlp.c_fc.weight
    before, gradient = weight.detach().clone(), torch.randn(16, 64)
    weight.grad = gradient.clone()
    muon.step()
    rate = muon.param_groups[1]["lr"]
    update = (before * (1 - rate * 0.1) - weight) / (rate * 0.2 * math.sqrt(64))
    error = (update - _newton_schulz(gradient.double())).abs().max()
    assert error < 1e-4 if precision == "fp32" else 1e-3 < error < 0.1


def test_a_checkpoint_has_one_state_for_each_parameter_of_both_optimisers(tmp_path: Path) -> None:
    objective = mtp()
    training(objective, tmp_path, MUON).run("test")
    state = checkpoint.load(tmp_path)
    assert state is not None
    for name, weight in objective.named_parameters():
        kept = state["optimizer"]["state"][name]
        in_blocks = IN_BLOCKS.match(name) is not None and weight.ndim == 2
        assert kept.keys() == ({"momentum_buffer"} if in_blocks else {"step", "exp_avg", "exp_avg_sq"})
        assert kept["momentum_buffer" if in_blocks else "exp_avg"].shape == weight.shape


@pytest.mark.parametrize("make", [ntp, cocomix, mtp, llama])
def test_the_flops_of_a_step_are_what_torch_counts(make: Callable[[], Objective]) -> None:
    objective = make()
    _, muon = optimizers(objective, MUON)
    assert isinstance(muon, Muon)
    for each in objective.parameters():
        each.grad = torch.randn_like(each)
    with FlopCounterMode(display=False) as counter:
        muon.step()
    assert muon.flops == counter.get_total_flops() > 0
    shape = objective.model.config.to_dict()
    shape = deepened(shape, len(objective.blocks_in_training()) - dimensions(shape).n_layer)
    assert muon.flops == sum(newton_schulz_flops(*each) for each in block_matrices(shape))


def test_the_curve_counts_the_flops_of_muon(tmp_path: Path) -> None:
    runs = {params.optimizer: training(ntp(), tmp_path / params.optimizer, params) for params in (PARAMS, MUON)}
    flops = {name: run.run("test")[-1].flops for name, run in runs.items()}
    assert flops["muon"] == flops["adamw"] + 12 * runs["muon"]._optimizers[1].flops  # type: ignore[attr-defined]


def _weights(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [each for group in optimizer.param_groups for each in group["params"]]
