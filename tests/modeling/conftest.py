import pytest
import torch

from cocomix.modeling import CoCoMixConfig, CoCoMixForCausalLM


def tiny(**changes: object) -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "n_positions": 48, "n_embd": 32, "n_layer": 4, "n_head": 4, "num_concepts": 40}
    fields = shape | {"concept_layer": 2, "concept_k": 5, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return CoCoMixForCausalLM(CoCoMixConfig(**(fields | changes))).eval()


@pytest.fixture(params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest) -> CoCoMixForCausalLM:
    return tiny(attn_implementation=request.param)
