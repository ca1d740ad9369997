from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
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

from cocomix.artifact import Artifact
from cocomix.base import (
    blocks_of,
    check_layer,
    forward_flops,
    load_base,
    micro_batch,
    residual_at,
    residual_edited,
)
from cocomix.errors import UserError
from cocomix.modeling import flops_per_token
from tests.conftest import CONTEXT, VOCAB

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


@pytest.mark.parametrize("layer", [1, 2])
def test_the_residual_stream_is_what_transformers_calls_hidden_states(
    model: PreTrainedModel, ids: torch.Tensor, layer: int
) -> None:
    expected = model(ids, output_hidden_states=True).hidden_states[layer]
    torch.testing.assert_close(residual_at(model, ids, layer), expected, rtol=0, atol=0)


def test_nothing_above_the_layer_is_computed(model: PreTrainedModel, ids: torch.Tensor) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a block above was run")

    for block in list(blocks_of(model))[2:]:
        block.register_forward_pre_hook(fail)
    residual_at(model, ids, 2)


def test_the_model_is_as_before_after_its_residual_stream_was_taken(model: PreTrainedModel, ids: torch.Tensor) -> None:
    before = model(ids).logits
    residual_at(model, ids, 1)
    with residual_edited(model, 1, torch.zeros_like):
        assert not torch.equal(model(ids).logits, before)
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=0)


def test_an_unchanged_residual_stream_changes_nothing(model: PreTrainedModel, ids: torch.Tensor) -> None:
    expected = model(ids).logits
    with residual_edited(model, 2, torch.clone):
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


def test_the_gradient_reaches_a_leaf_put_into_the_residual_stream(model: PreTrainedModel, ids: torch.Tensor) -> None:
    leaf = residual_at(model, ids, 2).clone().requires_grad_()
    with residual_edited(model, 2, lambda _: leaf):
        model(ids).logits.square().sum().backward()

    whole = model.requires_grad_(True)(ids, output_hidden_states=True)
    whole.hidden_states[2].retain_grad()
    whole.logits.square().sum().backward()
    torch.testing.assert_close(leaf.grad, whole.hidden_states[2].grad)


@pytest.mark.parametrize("layer", [0, 3, 4])
def test_a_layer_without_blocks_on_both_sides_is_an_error_that_says_which_are_allowed(
    model: PreTrainedModel, layer: int
) -> None:
    with pytest.raises(UserError, match=rf"activations\.layer: {layer}: .* 3 blocks; allowed: 1 to 2"):
        check_layer(model, layer)


def test_a_model_without_a_list_of_blocks_is_an_error_that_names_it(model: PreTrainedModel) -> None:
    model.config.num_hidden_layers = 5
    with pytest.raises(UserError, match=type(model).__name__):
        blocks_of(model)


def test_the_base_model_is_loaded_frozen_and_computes_what_was_saved(base_folder: Path, ids: torch.Tensor) -> None:
    model = load_base(Artifact(base_folder), CONTEXT)
    assert not model.training
    assert not any(each.requires_grad for each in model.parameters())
    plain = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)


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


def test_the_flops_of_a_gpt2_are_those_of_the_model_that_is_trained() -> None:
    model = families()[0]
    assert forward_flops(model, 7) == flops_per_token(model.config, 7)


def test_the_windows_of_a_forward_pass_are_a_runtime_knob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "3")
    assert micro_batch(CONTEXT) == 3


def test_a_window_longer_than_the_automatic_batch_is_read_alone() -> None:
    assert micro_batch(10**6) == 1
