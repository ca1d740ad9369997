import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from cocomix.base.flops import forward_flops, sizes
from cocomix.base.hooks import residual_at
from cocomix.models.accounting import flops_per_token
from tests.base.conftest import SHAPE, families


@pytest.mark.parametrize("layers", [None, 2])
def test_the_flops_of_a_forward_pass_are_those_that_torch_counts(
    model: PreTrainedModel, ids: torch.Tensor, layers: int | None
) -> None:
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        if layers is None:
            model(ids, use_cache=False)
        else:
            residual_at(model, ids, layers)
    assert forward_flops(model, ids.shape[1], layers) * ids.numel() == counter.get_total_flops()


def test_the_flops_of_heads_wider_than_the_stream_are_counted(ids: torch.Tensor) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=32, head_dim=24))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False)
    assert forward_flops(model, ids.shape[1]) * ids.numel() == counter.get_total_flops()


def test_the_flops_of_a_gpt2_are_those_of_the_model_that_is_trained() -> None:
    model = families()[0]
    assert forward_flops(model, 7) == flops_per_token(model.config, 7)


def test_the_sizes_are_those_of_each_number_of_blocks() -> None:
    model = families()[0]
    layers, found = model.config.num_hidden_layers, sizes(model, 7)
    assert (found["d_model"], found["n_layer"]) == (model.config.hidden_size, layers)
    assert found["flops"] == forward_flops(model, 7)
    assert found["flops_to_layer"] == [forward_flops(model, 7, layer) for layer in range(1, layers + 1)]
