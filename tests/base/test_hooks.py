from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from cocomix.base.flops import forward_flops
from cocomix.base.hooks import (
    activations_at,
    blocks_of,
    check_documents_apart,
    check_layer,
    check_sites,
    documents_apart,
    load_base,
    micro_batch,
    residual_at,
    residual_edited,
)
from cocomix.models.accounting import flops_per_token
from cocomix.params import Location, Site
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError
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


def test_blocks_without_a_stream_between_attention_and_mlp_are_an_error(model: PreTrainedModel) -> None:
    parallel = families()[3]
    with pytest.raises(UserError, match=r"resid_mid_1: .* GPTNeoXForCausalLM does not add to the residual stream"):
        check_sites(parallel, [Site("resid_mid", 1)])
    check_sites(parallel, [Site("attn_out", 1), Site("mlp_out", 2)])


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


def test_a_part_that_blocks_do_not_have_is_an_error_that_names_the_site(model: PreTrainedModel) -> None:
    for block in blocks_of(model):
        del block.mlp
    names = "post_feedforward_layernorm, post_mlp_layernorm, mlp, feed_forward"
    with pytest.raises(UserError, match=f"mlp_out_1: the blocks of .* have none of {names}"):
        check_sites(model, [Site("mlp_out", 1)])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_documents_kept_apart_are_computed_as_if_alone(
    model: PreTrainedModel, ids: torch.Tensor, attention: str
) -> None:
    model.set_attn_implementation(attention)
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [4, 4, 4, 4, 4, 4, 5]])
    sites = [Site("resid_post", 2)]
    (found,) = activations_at(model, ids, sites, **documents_apart(model, documents))
    for window, number in ((0, 0), (0, 1), (0, 2), (1, 4), (1, 5)):
        own = documents[window] == number
        (alone,) = activations_at(model, ids[window, own][None], sites)
        torch.testing.assert_close(found[window, own], alone[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0, 3:], activations_at(model, ids, sites)[0][0, 3:], rtol=1e-2)


WIDE = SHAPE | {"intermediate_size": 32, "num_key_value_heads": 1, "initializer_range": 0.3}
SLIDING = MistralConfig(**WIDE, sliding_window=3)
CONVOLVED = Lfm2Config(**WIDE, layer_types=["conv", "full_attention", "conv"])
RECURRENT = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=3)


@pytest.mark.parametrize(
    ("family", "config"),
    [(MistralForCausalLM, SLIDING), (Lfm2ForCausalLM, CONVOLVED), (MambaForCausalLM, RECURRENT)],
    ids=["sliding window", "convolution", "recurrence"],
)
def test_a_model_whose_documents_no_mask_keeps_apart_is_an_error_that_names_it(
    ids: torch.Tensor, family: type[PreTrainedModel], config: PreTrainedConfig
) -> None:
    torch.manual_seed(0)
    model = family(config).eval().requires_grad_(False)
    with pytest.raises(UserError, match=rf"activations\.separate_documents: {family.__name__} .* allowed: false"):
        check_documents_apart(model, ids[:1], [Site("resid_post", 2)])


def test_documents_can_be_kept_apart_where_a_mask_is_all_there_is_between_positions(
    model: PreTrainedModel, ids: torch.Tensor
) -> None:
    check_documents_apart(model, ids[:1], [Site("attn_out", 1), Site("resid_post", 2)])
    sliding = MistralForCausalLM(SLIDING).eval().requires_grad_(False)
    check_documents_apart(sliding, ids[:1, :3], [Site("resid_post", 2)])


@pytest.mark.parametrize("layer", [0, 3, 4])
def test_a_layer_without_blocks_on_both_sides_is_an_error_that_says_which_are_allowed(
    model: PreTrainedModel, layer: int
) -> None:
    with pytest.raises(UserError, match=rf"layer {layer}: .* 3 blocks; allowed: 1 to 2"):
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


def test_the_flops_of_heads_wider_than_the_stream_are_counted(ids: torch.Tensor) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=32, head_dim=24))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False)
    assert forward_flops(model, ids.shape[1]) * ids.numel() == counter.get_total_flops()


def test_the_flops_of_a_gpt2_are_those_of_the_model_that_is_trained() -> None:
    model = families()[0]
    assert forward_flops(model, 7) == flops_per_token(model.config, 7)


def test_the_windows_of_a_forward_pass_are_a_runtime_knob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "3")
    assert micro_batch(CONTEXT) == 3


def test_a_window_longer_than_the_automatic_batch_is_read_alone() -> None:
    assert micro_batch(10**6) == 1
