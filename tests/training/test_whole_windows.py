from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, masking_utils

from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.params import KdParams
from cocomix.tokens.window_data import Drawn
from cocomix.training.distillation import Distillation
from cocomix.training.objectives import ConceptMixing, Objective, Weighted
from cocomix.training.whole_windows import whole_windows

SHAPE: dict[str, Any] = {
    "vocab_size": 32,
    "n_positions": 8,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
CONCEPTS = {"num_concepts": 24, "concept_layer": 1, "concept_k": 4}
WINDOWS, LABELS = torch.arange(24).view(3, 8), torch.arange(48).view(3, 8, 2) % 24


def plain(kind: str) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SHAPE, attn_implementation=kind))


def cocomix(kind: str, mixing: str) -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    return CoCoMixForCausalLM(CoCoMixConfig(**SHAPE, **CONCEPTS, mixing=mixing, attn_implementation=kind))


class Waits(TorchDispatchMode):
    """Counts the operators that wait for a GPU: those whose result Python reads, or has the shape of."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(operator).removeprefix("aten.").partition(".")[0]
        if name in self.names:
            self.seen.append(name)
        return operator(*args, **(kwargs or {}))


def test_a_plain_model_waits_once_in_a_forward_pass_and_not_with_whole_windows() -> None:
    model = plain("sdpa")
    with Waits() as waits:
        model(WINDOWS, use_cache=False)
    assert waits.seen == ["_local_scalar_dense"]  # else `whole_windows` can go
    with whole_windows(model), Waits() as waits:
        model(WINDOWS, use_cache=False)
    assert waits.seen == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: Objective(plain("sdpa")),
        lambda: Objective(plain("sdpa"), Distillation(KdParams(source="cached", kl_weight=1.0))),
        lambda: ConceptMixing(cocomix("sdpa", "interleave"), Weighted(0.3)),
        lambda: ConceptMixing(cocomix("sdpa", "add"), Weighted(0.3), teacher_forcing=0.5),
    ],
    ids=["ntp", "kd", "interleave", "add"],
)
def test_a_forward_and_backward_pass_waits_for_nothing(make: Callable[[], Objective]) -> None:
    objective, batch = make(), dict[str, Any](windows=WINDOWS)
    if objective.distillation:
        drawn = Drawn(LABELS, torch.full(LABELS.shape, 0.5), torch.ones(WINDOWS.shape))
        batch |= {"drawn": drawn, "kl_weight": torch.ones(())}
    if isinstance(objective, ConceptMixing):
        batch |= {"labels": LABELS, "forced_rows": torch.tensor([True, False, True])}
    with whole_windows(objective.model), Waits() as waits:
        losses = objective(**batch)
        (losses.tokens + losses.auxiliary.get("concept", 0)).backward()
    assert waits.seen == []


def test_whole_windows_change_no_number_and_nothing_afterwards() -> None:
    model = plain("sdpa")
    expected = model(WINDOWS, use_cache=False).logits
    with whole_windows(model):
        assert torch.equal(model(WINDOWS, use_cache=False).logits, expected)
    padded = torch.ones_like(WINDOWS)
    padded[:, :3] = 0
    after = model(WINDOWS, attention_mask=padded, use_cache=False).logits
    expected = plain("eager")(WINDOWS, attention_mask=padded, use_cache=False).logits
    torch.testing.assert_close(after[:, 3:], expected[:, 3:])


def test_cocomix_needs_no_mask_where_transformers_would_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masks = cocomix("sdpa", "interleave"), list[Any]()
    expected = model(WINDOWS, use_cache=False).logits
    monkeypatch.setattr(masking_utils, "is_torchdynamo_exporting", lambda: True)  # as torch 2.12 says while compiling
    for block in model.base_model.blocks:
        block.register_forward_pre_hook(
            lambda _block, _args, given: masks.append(given["attention_mask"]), with_kwargs=True
        )
    assert torch.equal(model(WINDOWS, use_cache=False).logits, expected)
    assert masks == [None, None, None]


@pytest.mark.parametrize(
    ("make", "masked"),
    [
        (lambda: Objective(plain("sdpa")), 0),
        (lambda: ConceptMixing(cocomix("sdpa", "add"), Weighted(0.3)), 0),
        (lambda: ConceptMixing(cocomix("sdpa", "interleave"), Weighted(0.3)), 1),  # the last block's concept positions
    ],
    ids=["ntp", "add", "interleave"],
)
def test_compiled_attention_needs_no_mask(make: Callable[[], Objective], masked: int) -> None:
    masks: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        attends = [each for each in graph.graph.nodes if each.target is F.scaled_dot_product_attention]
        masks.extend(each.kwargs.get("attn_mask") for each in attends)
        return graph.forward

    objective = make()
    labels = {"labels": LABELS} if isinstance(objective, ConceptMixing) else {}
    torch.compiler.reset()
    with whole_windows(objective.model):
        torch.compile(objective, backend=backend)(WINDOWS, **labels)
    assert len(masks) == 3
    assert sum(each is not None for each in masks) == masked
