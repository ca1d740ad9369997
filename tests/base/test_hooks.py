import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
)

from cocomix.base.blocks import blocks_of
from cocomix.base.hooks import activations_at, residual_at, residual_edited
from cocomix.base.sites import check_sites
from cocomix.params import Location, Site
from tests.base.conftest import SHAPE
from tests.conftest import VOCAB


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


@pytest.mark.parametrize("location", ["resid_post", "mlp_out"])
def test_an_unchanged_residual_stream_changes_nothing_in_bf16(
    model: PreTrainedModel, ids: torch.Tensor, location: Location
) -> None:
    model.to(torch.bfloat16)
    expected = model(ids).logits
    with residual_edited(model, 2, torch.clone, location):
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


def test_a_residual_stream_that_a_model_in_bf16_keeps_in_fp32_is_not_rounded(ids: torch.Tensor) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": VOCAB, "state_size": 8, "initializer_range": 0.2}
    model = MambaForCausalLM(MambaConfig(**shape, residual_in_fp32=True)).eval().to(torch.bfloat16)
    assert residual_at(model, ids, 2).dtype == torch.float32
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


LOCATIONS = ["resid_post", "resid_mid", "attn_out", "mlp_out"]


def by_hand(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The activations at the locations of block 2 of a GPT-2 or a Llama, from its parts."""
    before, after = model(ids, output_hidden_states=True).hidden_states[1:3]
    block = blocks_of(model)[1]
    if isinstance(model, GPT2LMHeadModel):
        mask = torch.full((7, 7), -torch.inf).triu(1)[None, None]
        attention = block.attn(block.ln_1(before), attention_mask=mask)[0]
        mlp = block.mlp(block.ln_2(before + attention))
    else:
        embeddings = model.model.rotary_emb(before, torch.arange(7)[None])
        mask = torch.full((7, 7), -torch.inf).triu(1)[None, None]
        attention = block.self_attn(block.input_layernorm(before), position_embeddings=embeddings, attention_mask=mask)[
            0
        ]
        mlp = block.mlp(block.post_attention_layernorm(before + attention))
    return {"resid_post": after, "resid_mid": before + attention, "attn_out": attention, "mlp_out": mlp}


@pytest.mark.parametrize("model", [0, 1, 2], indirect=True, ids=["gpt2", "llama", "qwen2"])
def test_each_location_is_what_its_part_of_the_block_computes(model: PreTrainedModel, ids: torch.Tensor) -> None:
    sites = [Site(location, 2) for location in LOCATIONS]
    check_sites(model, sites)
    expected = by_hand(model, ids)
    for site, found in zip(sites, activations_at(model, ids, sites), strict=True):
        torch.testing.assert_close(found, expected[site.location], rtol=1e-4, atol=1e-5)


def test_sites_may_be_of_several_layers_in_any_order(model: PreTrainedModel, ids: torch.Tensor) -> None:
    sites = [Site("mlp_out", 2), Site("resid_post", 1), Site("attn_out", 1)]
    for site, found in zip(sites, activations_at(model, ids, sites), strict=True):
        torch.testing.assert_close(found, activations_at(model, ids, [site])[0], rtol=0, atol=0)


@pytest.mark.parametrize("model", [0, 1, 2], indirect=True, ids=["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("location", LOCATIONS)
def test_an_edit_at_a_location_is_what_the_rest_of_the_model_goes_on_from(
    model: PreTrainedModel, ids: torch.Tensor, location: Location
) -> None:
    shift = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    logits = model(ids).logits
    with residual_edited(model, 2, torch.clone, location):
        torch.testing.assert_close(model(ids).logits, logits, rtol=0, atol=0)
    at = by_hand(model, ids)
    block = blocks_of(model)[1]
    norm = block.ln_2 if isinstance(model, GPT2LMHeadModel) else block.post_attention_layernorm
    middle = at["resid_mid"] + (shift if location in ("resid_mid", "attn_out") else 0)
    expected = middle + block.mlp(norm(middle)) + (shift if location in ("resid_post", "mlp_out") else 0)
    with residual_edited(model, 2, lambda x: x + shift, location):
        torch.testing.assert_close(residual_after(model, ids, 2), expected, rtol=1e-4, atol=1e-5)


def residual_after(model: PreTrainedModel, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """With edits: what block `layer + 1` is given."""
    given: list[torch.Tensor] = []
    handle = blocks_of(model)[layer].register_forward_pre_hook(lambda _block, args: given.append(args[0]))
    model(ids)
    handle.remove()
    return given[0]


NORMALISED = SHAPE | {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("model", "in_the_middle"),
    [
        (Gemma2ForCausalLM(Gemma2Config(**NORMALISED)), True),
        (Olmo2ForCausalLM(Olmo2Config(**NORMALISED)), False),
        (Glm4ForCausalLM(Glm4Config(**NORMALISED)), True),
    ],
    ids=["gemma2", "olmo2", "glm4"],
)
def test_what_attention_and_mlp_add_is_taken_behind_their_norms(
    model: PreTrainedModel, ids: torch.Tensor, in_the_middle: bool
) -> None:
    model.eval().requires_grad_(False)
    sites = [Site.parse(each) for each in ("resid_post_1", "attn_out_2", "mlp_out_2", "resid_post_2")]
    check_sites(model, sites)
    entered, attention, mlp, left = activations_at(model, ids, sites)
    torch.testing.assert_close(entered + attention + mlp, left, rtol=1e-4, atol=1e-5)
    shift = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    with residual_edited(model, 2, lambda x: x + shift, "mlp_out"):
        torch.testing.assert_close(residual_after(model, ids, 2), left + shift, rtol=1e-4, atol=1e-5)
    if in_the_middle:
        check_sites(model, [Site("resid_mid", 2)])
        (middle,) = activations_at(model, ids, [Site("resid_mid", 2)])
        torch.testing.assert_close(entered + attention, middle, rtol=1e-4, atol=1e-5)
