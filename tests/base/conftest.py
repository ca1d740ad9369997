"""Small models of several families."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.conftest import VOCAB

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": VOCAB}


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")


def families() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    wide = SHAPE | {"intermediate_size": 32}
    models = [
        GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=VOCAB)),
        LlamaForCausalLM(LlamaConfig(**wide)),
        Qwen2ForCausalLM(Qwen2Config(**wide, num_key_value_heads=1)),
        GPTNeoXForCausalLM(GPTNeoXConfig(**wide)),
    ]
    return [model.eval().requires_grad_(False) for model in models]


@pytest.fixture(params=range(4), ids=["gpt2", "llama", "qwen2", "gpt-neox"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return families()[request.param]


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(0))
