import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DogeConfig,
    DogeForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from cocomix.attribution.labelling import loss_gradient
from cocomix.attribution.positions_apart import check_positions_apart, keys_values, positions_apart
from cocomix.base.hooks import residual_at, residual_edited
from cocomix.base.loading import prepared
from cocomix.plumbing.errors import UserError

CONTEXT, LAYER = 7, 2
LLAMA = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=24,
            n_embd=16,
            n_layer=4,
            n_head=2,
            n_positions=CONTEXT,
            initializer_range=0.3,
            scale_attn_by_inverse_layer_idx=True,
        )
    )


MODELS = {
    "gpt2": gpt2,
    "llama_with_shared_keys": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "mistral_with_a_sliding_window": lambda: MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=3)),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """In fp64, so that what is equal is equal to the last digits."""
    monkeypatch.setenv("COCOMIX_PRECISION", "fp32")
    monkeypatch.setenv("COCOMIX_DEVICE", "cpu")
    torch.manual_seed(0)
    return prepared(MODELS[request.param]()).double()


def some_ids(windows: int) -> Tensor:
    return torch.randint(0, 24, (windows, CONTEXT), generator=torch.Generator().manual_seed(1))


def losses_with(model: PreTrainedModel, ids: Tensor, residual: Tensor) -> Tensor:
    """The next-token losses, [windows, context - 1], of the plain model with its residual stream replaced."""
    with residual_edited(model, LAYER, lambda _: residual):
        logits = model(ids).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")


def test_the_gradient_of_each_next_token_is_that_found_position_by_position(model: PreTrainedModel) -> None:
    ids = some_ids(3)
    residual = residual_at(model, ids, LAYER)
    expected = torch.zeros_like(residual)
    for position in range(CONTEXT - 1):
        leaf = residual.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(losses_with(model, ids, leaf)[:, position].sum(), leaf)
        expected[:, position] = gradient[:, position]
    found = loss_gradient(model, ids, LAYER, "next_token").gradient.view_as(expected)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)
    whole = loss_gradient(model, ids, LAYER).gradient.view_as(expected)
    assert (whole - found).abs().max() > 0.01
    # Nothing reads a position before the last but one other than that one.
    torch.testing.assert_close(whole[:, -2], found[:, -2], rtol=1e-4, atol=1e-6)


def test_an_edited_position_has_the_loss_that_it_has_when_it_alone_is_edited(model: PreTrainedModel) -> None:
    ids = some_ids(1)
    residual = residual_at(model, ids, LAYER)
    change = torch.randn(2, *residual.shape[1:], generator=torch.Generator().manual_seed(2)).double()
    others = keys_values(model, ids)
    with positions_apart(model, others):
        together = losses_with(model, ids.expand(2, -1), residual + change)
    for position in range(CONTEXT - 1):
        alone = residual.repeat(2, 1, 1)
        alone[:, position] += change[:, position]
        expected = losses_with(model, ids.expand(2, -1), alone)[:, position]
        torch.testing.assert_close(together[:, position], expected, rtol=1e-5, atol=1e-6)


def test_the_models_values_are_unchanged_and_so_is_its_attention_afterwards(model: PreTrainedModel) -> None:
    ids, before = some_ids(2), model.config._attn_implementation
    expected = model(ids).logits
    with positions_apart(model) as seen:
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-6)
    assert sorted(seen) == [0, 1, 2, 3]
    assert model.config._attn_implementation == before
    torch.testing.assert_close(model(ids).logits, expected)


def test_a_model_in_which_nothing_but_keys_and_values_crosses_passes(model: PreTrainedModel) -> None:
    check_positions_apart(model, LAYER, some_ids(1))


RECURRENT = FalconH1Config(**LLAMA, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8)
UNFIT = {
    "no AttentionInterface": (BloomForCausalLM, BloomConfig(vocab_size=24, hidden_size=16, n_layer=4), "more crosses"),
    "a recurrence beside attention": (FalconH1ForCausalLM, RECURRENT, "more crosses"),
    "capped scores": (Gemma2ForCausalLM, Gemma2Config(**LLAMA, head_dim=4), "caps or shifts"),
    "a mask of scores": (DogeForCausalLM, DogeConfig(**LLAMA), "caps or shifts"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_attention_of_another_kind_is_an_error_and_no_wrong_gradient(kind: str) -> None:
    family, config, why = UNFIT[kind]
    torch.manual_seed(0)
    unfit = prepared(family(config))
    before = unfit.config._attn_implementation
    with pytest.raises(UserError, match=f"scope: next_token: .*{why}.*; allowed: sequence"):
        check_positions_apart(unfit, LAYER, some_ids(1))
    assert unfit.config._attn_implementation == before
