from itertools import product

import pytest
import torch
from torch import Tensor, nn

from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.modeling.mixers import Gate

MIXINGS = ("interleave", "interleave_with_state", "add", "none")
VARIANTS = (
    [
        {"mixing": mixing, "concept_head": head, "stop_gradient": stop}
        for mixing, head, stop in product(MIXINGS, ("released", "equations"), (False, True))
        if not (mixing == "none" and stop)
    ]
    + [
        {"predicts": "hidden", "mixing": mixing, "stop_gradient": stop}
        for mixing, stop in product(MIXINGS, (False, True))
        if not (mixing == "none" and stop)
    ]
    + [{"mixing": mixing, "learned_scale": True} for mixing in MIXINGS if mixing != "none"]
    + [{"mixing": mixing, "gate": True} for mixing in MIXINGS if mixing != "none"]
    + [{"predicts": "hidden", "mixing": "interleave", "gate": True}]
    + [{"predicts": "nothing"}]
    + [{"predicts": "nothing", "mlp_width": 20, "mixing": mixing} for mixing in MIXINGS if mixing != "none"]
    + [{"predicts": "nothing", "mlp_width": 20, "mixing": "add", "gate": True}]
)
"""Every model that the configuration allows."""
MAIN = [{}, {"mixing": "add"}, {"predicts": "nothing"}]
"""CoCoMix, its adding ablation, pause tokens."""


def named(variant: dict[str, object]) -> str:
    return "-".join(key if value is True else str(value) for key, value in variant.items() if value) or "cocomix"


def tiny(**changes: object) -> CoCoMixForCausalLM:
    """A random model; its weights are large, so that attention is far from uniform, and its gate is open."""
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "n_positions": 48, "n_embd": 32, "n_layer": 4, "n_head": 4, "initializer_range": 0.2}
    fields = shape | {"num_concepts": 40, "concept_layer": 2, "concept_k": 5, "base_width": 24}
    fields |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = CoCoMixForCausalLM(CoCoMixConfig(**(fields | changes))).eval()
    for each in model.modules():
        if isinstance(each, Gate):
            nn.init.constant_(each.weight, 0.7)
    return model


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=VARIANTS, ids=named)
def variant(request: pytest.FixtureRequest) -> dict[str, object]:
    return request.param


@pytest.fixture(params=["eager", "sdpa"])
def attention(request: pytest.FixtureRequest) -> str:
    return request.param
