from itertools import product

import pytest
import torch
from torch import Tensor, nn

from cocomix.modeling import (
    CoCoMixConfig,
    CoCoMixForCausalLM,
    CoCoMixLanguageModel,
    CoCoMixLlamaConfig,
    CoCoMixLlamaForCausalLM,
)
from cocomix.modeling.mixers import Gate

MIXINGS = ("interleave", "interleave_with_state", "add", "none")
LLAMA = {"backbone": "llama", "n_kv_head": 2, "qk_norm": True}
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
    + [{**LLAMA, "mixing": mixing} for mixing in MIXINGS]
    + [{"backbone": "llama", "concept_head": "equations"}, {**LLAMA, "predicts": "hidden"}]
    + [{**LLAMA, "predicts": "nothing"}, {**LLAMA, "predicts": "nothing", "mlp_width": 20, "mixing": "add"}]
)
"""Every model that the configuration allows; on Llama, those whose blocks see something else."""
ATTENDING = [
    *({**each, "attn_implementation": "sdpa"} for each in VARIANTS),
    *({"mixing": mixing, "attn_implementation": "eager"} for mixing in MIXINGS),
    *({**LLAMA, "mixing": mixing, "attn_implementation": "eager"} for mixing in MIXINGS),
    {"backbone": "llama", "attn_implementation": "eager"},
]
"""The same with each attention; with the eager one, those whose blocks see something else."""
MAIN = [{}, {"mixing": "add"}, {"predicts": "nothing"}]
"""CoCoMix, its adding ablation, pause tokens."""
_OF_LLAMA = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
}


def named(variant: dict[str, object]) -> str:
    return "-".join(key if value is True else str(value) for key, value in variant.items() if value) or "cocomix"


def precise(model: CoCoMixLanguageModel) -> CoCoMixLanguageModel:
    """In double precision, if its backbone computes in it: Llama's norms, rotations and softmax are in single."""
    return model.double() if model.config.model_type == "cocomix" else model


def tolerance(model: CoCoMixLanguageModel) -> dict[str, float]:
    """Of values and gradients of a `precise` model."""
    is_double = model.config.model_type == "cocomix"
    return {"atol": 1e-10, "rtol": 1e-8} if is_double else {"atol": 2e-3, "rtol": 2e-3}


def tiny(backbone: str = "gpt2", **changes: object) -> CoCoMixLanguageModel:
    """A random model; its weights are large, so that attention is far from uniform, and its gate is open.

    Args:
        changes: of its configuration; dimensions have GPT-2's names for each backbone.
    """
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "n_positions": 48, "n_embd": 32, "n_layer": 4, "n_head": 4, "initializer_range": 0.2}
    fields = shape | {"num_concepts": 40, "concept_layer": 2, "concept_k": 5, "base_width": 24}
    fields |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0} | changes
    if backbone == "gpt2":
        model = CoCoMixForCausalLM(CoCoMixConfig(**fields)).eval()
    else:
        fields = {_OF_LLAMA.get(name, name): each for name, each in ({"n_inner": 40} | fields).items()}
        model = CoCoMixLlamaForCausalLM(CoCoMixLlamaConfig(**fields)).eval()
    for each in model.modules():
        if isinstance(each, Gate):
            nn.init.constant_(each.weight, 0.7)
    return model


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=VARIANTS, ids=named)
def variant(request: pytest.FixtureRequest) -> dict[str, object]:
    return request.param


@pytest.fixture(params=ATTENDING, ids=named)
def attending(request: pytest.FixtureRequest) -> dict[str, object]:
    return request.param


@pytest.fixture(params=["eager", "sdpa"])
def attention(request: pytest.FixtureRequest) -> str:
    return request.param
