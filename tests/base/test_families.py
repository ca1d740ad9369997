"""From stage `base` to `steer --base`, for models of many families."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel

from cocomix.attribution.labelling import label_windows, loss_gradient
from cocomix.attribution.positions_apart import check_positions_apart
from cocomix.base.blocks import blocks_of
from cocomix.base.documents_apart import check_documents_apart
from cocomix.base.families import check_base, final_norm
from cocomix.base.flops import forward_flops
from cocomix.base.hooks import activations_at, residual_at, residual_edited
from cocomix.base.loading import load_base
from cocomix.base.sites import check_sites
from cocomix.explain.lens import promoted
from cocomix.modeling import Set
from cocomix.params import AttributionParams, Site
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError
from cocomix.pretrained import load_model
from cocomix.sae.autoencoder import SaeConfig, SparseAutoencoder
from cocomix.steering.autoencoder import concepts_edited
from cocomix.steering.reading import encode
from tests.base.tiny_families import AT_ONCE, BLOCKS, FAMILIES, VOCAB, WIDTH, config_of, tiny, with_images

CONTEXT, LAYER = 16, 2
IDS = torch.randint(3, VOCAB, (2, 8), generator=torch.Generator().manual_seed(0))
PARAMS = AttributionParams(k_attr=2, score="gradient", sign="absolute", shard_tokens=8)


def autoencoder() -> SparseAutoencoder:
    torch.manual_seed(0)
    sae = SparseAutoencoder(SaeConfig(d_model=WIDTH, latents=32, k=4, normalize="token", layer=LAYER))
    for each in (sae.encoder, sae.decoder):
        torch.nn.init.normal_(each)
    return sae.requires_grad_(False)


def taken(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """As stage `base` takes a pretrained model, and later stages load it."""
    model.save_pretrained(folder / "theirs")
    loaded = load_model("base.pretrained", str(folder / "theirs"), None, dtype).eval().requires_grad_(False)
    check_base(loaded, CONTEXT)
    with Work("base", folder / "base", {}, {}) as work:
        with work.write_folder() as target:
            loaded.save_pretrained(target)
        work.finish({})
        work.publish()
    return load_base(Artifact(folder / "base"), CONTEXT)


@pytest.mark.parametrize(
    "family", [pytest.param(each, marks=() if each in AT_ONCE else pytest.mark.slow) for each in FAMILIES]
)
def test_a_family_goes_from_base_to_steering(family: str, folder: Path) -> None:
    allows = FAMILIES[family]
    model = taken(tiny(family), folder)
    assert model.config.hidden_size == WIDTH
    assert len(blocks_of(model)) == BLOCKS
    streams_are_transformers_own(model, allows.shift)
    sites_are_those_of(model, allows.parts)
    the_lens_reads_as_the_model_does(model)
    gradients_are_those_of_the_whole_model(model)
    an_edit_starts_where_it_should(model)
    assert label_windows(model, autoencoder(), IDS, PARAMS).concepts.shape == (2, 8, 2)
    assert promoted(model, autoencoder(), VOCAB - 1, 5).numbers.shape == (32, 5)
    without_the_blocks_above_the_stream_is_the_same(model, folder)
    if allows.flops:
        flops_are_those_that_torch_counts(model)
    assert forward_flops(model, 8) > forward_flops(model, 8, 2) > 0
    assert passes(lambda: check_documents_apart(model, IDS[:1], [Site("resid_post", LAYER)])) == allows.apart
    assert passes(lambda: check_positions_apart(model, LAYER, IDS[:1])) == allows.next_token


def passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except UserError:
        return False
    return True


def streams_are_transformers_own(model: PreTrainedModel, shift: int) -> None:
    theirs = model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states[LAYER - shift]
    torch.testing.assert_close(residual_at(model, IDS, LAYER), theirs, rtol=0, atol=0)


def sites_are_those_of(model: PreTrainedModel, parts: str) -> None:
    found = [
        each
        for each in ("resid_mid", "attn_out", "mlp_out")
        if passes(partial(check_sites, model, [Site(each, LAYER)]))
    ]
    assert " ".join(found) == parts
    for location in found:
        (activations,) = activations_at(model, IDS, [Site(location, LAYER)])
        assert activations.shape == (*IDS.shape, WIDTH)
        before = model(input_ids=IDS, use_cache=False).logits
        with residual_edited(model, LAYER, lambda x: x + torch.arange(x.shape[-1]), location):
            assert not torch.allclose(model(input_ids=IDS, use_cache=False).logits, before)


def the_lens_reads_as_the_model_does(model: PreTrainedModel) -> None:
    """But for a scale, and for a cap that hardly matters."""
    last = residual_at(model, IDS, BLOCKS)
    read, logits = model.get_output_embeddings()(final_norm(model)(last)), model(input_ids=IDS, use_cache=False).logits
    scale = (read * logits).sum() / read.square().sum()
    torch.testing.assert_close(scale * read, logits, rtol=2e-2, atol=2e-2 * float(logits.abs().max()))


def without_the_blocks_above_the_stream_is_the_same(model: PreTrainedModel, folder: Path) -> None:
    lower = load_base(Artifact(folder / "base"), CONTEXT, LAYER)
    assert not any(each.numel() for block in blocks_of(lower)[LAYER:] for each in block.parameters())
    check_sites(lower, [Site("resid_post", LAYER)])
    torch.testing.assert_close(residual_at(lower, IDS, LAYER), residual_at(model, IDS, LAYER), rtol=0, atol=0)


def gradients_are_those_of_the_whole_model(model: PreTrainedModel) -> None:
    kept: list[Tensor] = []

    def keep(_block: object, _args: object, output: object) -> None:
        kept.append(output[0] if isinstance(output, tuple | list) else output)
        kept[0].retain_grad()

    handle = blocks_of(model)[LAYER - 1].register_forward_hook(keep)
    model.requires_grad_(True)
    logits = model(input_ids=IDS, use_cache=False).logits
    handle.remove()
    F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), reduction="sum").backward()
    model.requires_grad_(False)
    found = loss_gradient(model, IDS, LAYER).gradient
    torch.testing.assert_close(found, kept[0].grad.flatten(0, 1), rtol=1e-3, atol=1e-4)


def an_edit_starts_where_it_should(model: PreTrainedModel) -> None:
    prompt, edits = encode(model, IDS[0].tolist(), None), [Set(5, 30.0, start=9)]
    with concepts_edited(model, autoencoder(), edits):
        written = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False, eos_token_id=None
        )
        by_hand = prompt
        for _ in range(4):
            following = model(input_ids=by_hand, use_cache=False).logits[:, -1:].argmax(-1)
            by_hand = torch.cat([by_hand, following], 1)
    assert written.tolist() == by_hand.tolist()


def flops_are_those_that_torch_counts(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")
    model.set_experts_implementation("batched_mm")  # of whose products torch counts each
    with FlopCounterMode(display=False) as counter:
        model(input_ids=IDS, use_cache=False)
    assert forward_flops(model, IDS.shape[1]) * IDS.numel() == counter.get_total_flops()


@pytest.mark.parametrize(
    "family", [pytest.param(each, marks=() if each in AT_ONCE else pytest.mark.slow) for each in FAMILIES]
)
def test_in_bf16_a_family_computes_about_the_same(family: str, folder: Path) -> None:
    allows, expected = FAMILIES[family], taken(tiny(family), folder)
    (folder / "half").mkdir()
    model, sae = taken(tiny(family), folder / "half", torch.bfloat16), autoencoder()
    assert model.dtype == torch.bfloat16
    streams = [residual_at(each, IDS, LAYER).float() for each in (model, expected)]
    apart = (streams[0] - streams[1]).norm(dim=2) / streams[1].norm(dim=2)
    assert apart.median() < 0.02  # a token whose rounding changes its expert differs more
    for name in allows.parts.split():
        check_sites(model, [Site(name, LAYER)])
    assert passes(lambda: check_documents_apart(model, IDS[:1], [Site("resid_post", LAYER)])) == allows.apart
    for score in ("gradient", "activation", "integrated"):
        asked = PARAMS.model_copy(update={"score": score, "sign": "released" if score == "activation" else "absolute"})
        assert label_windows(model, sae, IDS, asked).concepts.shape == (2, 8, 2)
    if allows.next_token:
        check_positions_apart(model, LAYER, IDS[:1])
        label_windows(model, sae, IDS, PARAMS.model_copy(update={"scope": "next_token"}))
    ours, exact = (promoted(each, sae, VOCAB, VOCAB) for each in (model, expected))
    scale = exact.values.abs().max()
    torch.testing.assert_close(ours.values / scale, exact.values / scale, rtol=0, atol=0.05)
    prompt = encode(model, IDS[0].tolist(), None)
    with concepts_edited(model, sae, [Set(5, 30.0)]):
        model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_of_a_model_of_text_and_images_the_text_part_is_taken(family: str, folder: Path) -> None:
    whole = with_images()[family].eval()
    model = taken(whole, folder)
    assert len(blocks_of(model)) == BLOCKS
    assert not any("vision" in name for name, _ in model.named_parameters())
    expected = whole(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(model(input_ids=IDS, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)


SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL |= {"vocab_size": VOCAB, "max_position_embeddings": 40, "pad_token_id": 0}
PAIR = {"d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": VOCAB, "encoder_ffn_dim": 32}
PAIR |= {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCAB}


@pytest.mark.parametrize(
    ("family", "kind", "more", "reason"),
    [
        ("bert", AutoModelForMaskedLM, SMALL, "a BertLMHeadModel sees the tokens that it is to predict"),
        ("roberta", AutoModelForMaskedLM, SMALL, "a RobertaForCausalLM sees the tokens that it is to predict"),
        ("albert", AutoModelForMaskedLM, SMALL | {"embedding_size": 8}, "albert is no causal language model"),
        ("bart", AutoModelForSeq2SeqLM, PAIR, "bart is no causal language model"),
        ("t5", AutoModelForSeq2SeqLM, T5, "t5 is no causal language model"),
        (
            "vit",
            AutoModel,
            {"hidden_size": WIDTH, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14},
            "vit is no",
        ),
    ],
)
def test_a_model_that_does_not_predict_what_follows_is_refused_in_one_line(
    family: str, kind: type[AutoModel], more: dict[str, object], reason: str, folder: Path
) -> None:
    kind.from_config(config_of(family, more)).save_pretrained(folder / "theirs")
    with pytest.raises(UserError, match=reason):
        check_base(load_model("base.pretrained", str(folder / "theirs"), None, torch.float32).eval(), CONTEXT)


def test_a_model_whose_predictions_are_no_numbers_is_refused(folder: Path) -> None:
    model = tiny("gpt2").eval().requires_grad_(False)
    model.transformer.ln_f.weight.fill_(3e38)
    with pytest.raises(UserError, match="GPT2LMHeadModel predicts logits that are not finite"):
        check_base(model, CONTEXT)


def test_windows_longer_than_a_model_reads_are_refused_even_where_its_configuration_does_not_say_so(
    folder: Path,
) -> None:
    with pytest.raises(UserError, match=r"a GPT2LMHeadModel with a context of 32; the tokens need 64"):
        check_base(tiny("gpt2").eval(), 64)
    model = tiny("gpt2").eval().requires_grad_(False)
    model.config.n_positions = 64
    with pytest.raises(UserError, match="GPT2LMHeadModel cannot be run: IndexError: "):
        check_base(model, 64)


def test_a_model_whose_blocks_run_more_than_once_is_refused() -> None:
    model = tiny("gpt2").eval().requires_grad_(False)
    model.transformer.h[1] = model.transformer.h[0]
    with pytest.raises(UserError, match="GPT2LMHeadModel does not run its 3 blocks one after another"):
        check_base(model, CONTEXT)
