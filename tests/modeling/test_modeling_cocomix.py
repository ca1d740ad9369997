from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from cocomix.modeling import CoCoMixCache, CoCoMixConfig, CoCoMixForCausalLM, flops_per_token, parameters
from tests.modeling.conftest import tiny


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def reference(model: CoCoMixForCausalLM, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's equations written out: dense top-K mask, dense compress, concatenation by loops."""
    body, config = model.transformer, model.config
    hidden = body.wte(tokens) + body.wpe(torch.arange(tokens.shape[1]))
    for block in body.h[: config.concept_layer]:
        hidden = plain_block(block, hidden, config.n_head)
    mean, std = hidden.mean(-1, keepdim=True), hidden.std(-1, unbiased=True, keepdim=True) + 1e-5
    z = body.mixer.predictor((hidden - mean) / std - body.mixer.pre_bias)
    kept = torch.zeros_like(z).scatter(-1, z.topk(config.concept_k).indices, 1.0) * z
    concept = (kept @ body.mixer.compress.weight + body.mixer.pre_bias) * std + mean
    pairs = [each for t in range(tokens.shape[1]) for each in (hidden[:, t], concept[:, t])]
    hidden = torch.stack(pairs, dim=1)
    for block in body.h[config.concept_layer :]:
        hidden = plain_block(block, hidden, config.n_head)
    return F.linear(body.ln_f(hidden)[:, 1::2], model.lm_head.weight), z


def plain_block(block: torch.nn.Module, hidden: Tensor, heads: int) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = (split(x) for x in block.attn.c_attn(block.ln_1(hidden)).chunk(3, dim=-1))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
    hidden = hidden + block.attn.c_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + block.mlp(block.ln_2(hidden))


def test_logits_concepts_and_gradients_equal_the_equations_written_out(model: CoCoMixForCausalLM) -> None:
    model.requires_grad_(True)
    with torch.no_grad():
        model.transformer.mixer.pre_bias.normal_()
    tokens = ids(3, 11)
    expected, expected_z = reference(model, tokens)
    output = model(tokens)
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.concept_logits, expected_z, atol=1e-5, rtol=1e-4)
    weight = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), list(model.parameters()))
    gradients = torch.autograd.grad((output.logits * weight).sum(), list(model.parameters()))
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-3, rtol=1e-3)


def test_there_is_one_row_of_logits_a_text_token_and_no_row_sees_the_future(model: CoCoMixForCausalLM) -> None:
    tokens = ids(2, 9)
    changed = tokens.clone()
    changed[:, 6:] = ids(2, 3, seed=5)
    first, second = model(tokens).logits, model(changed).logits
    assert first.shape == (2, 9, 61)
    torch.testing.assert_close(first[:, :6], second[:, :6])
    assert not torch.allclose(first[:, 6:], second[:, 6:])


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.sampled_from(["eager", "sdpa"]))
def test_logits_from_a_cache_equal_the_full_forward_for_any_chunks(chunks: list[int], attention: str) -> None:
    model = tiny(attn_implementation=attention)
    tokens = ids(2, sum(chunks))
    cache, rows = CoCoMixCache(model.config), []
    for chunk in tokens.split(chunks, dim=1):
        rows.append(model(chunk, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(rows, dim=1), model(tokens).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=["greedy", "beams", "lookup"]
)
def test_generation_with_a_cache_equals_generation_without(model: CoCoMixForCausalLM, options: dict[str, int]) -> None:
    prompt = ids(1, 4).repeat(1, 3)
    settings_ = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    with_cache = model.generate(prompt, **settings_, **options)
    plain = {key: value for key, value in options.items() if key == "num_beams"}
    without = model.generate(prompt, **settings_, **plain, use_cache=False)
    assert with_cache.tolist() == without.tolist()


def test_left_padded_rows_generate_what_they_generate_alone(model: CoCoMixForCausalLM) -> None:
    prompts = [ids(1, 3, seed=1), ids(1, 7, seed=2)]
    alone = [model.generate(each, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, -8:] for each in prompts]
    padded = torch.stack([F.pad(each[0], (7 - each.shape[1], 0)) for each in prompts])
    mask = torch.stack([F.pad(torch.ones_like(each[0]), (7 - each.shape[1], 0)) for each in prompts])
    together = model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert together[:, -8:].tolist() == torch.stack(alone).tolist()


def test_a_static_cache_is_refused_with_the_reason(model: CoCoMixForCausalLM) -> None:
    with pytest.raises(ValueError, match="cannot hold a CoCoMix model's two lengths"):
        model.generate(ids(1, 3), max_new_tokens=2, cache_implementation="static")


def test_a_window_of_the_whole_context_works(model: CoCoMixForCausalLM) -> None:
    assert model(ids(1, 48)).logits.isfinite().all()


def test_it_loads_like_any_model_of_the_library_and_says_the_same(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, CoCoMixForCausalLM)
    torch.testing.assert_close(loaded(ids(2, 8)).logits, model(ids(2, 8)).logits, atol=0, rtol=0)


def test_the_loss_is_the_librarys_for_the_same_logits() -> None:
    model, tokens = tiny(), ids(2, 8)
    output = model(tokens, labels=tokens)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


def test_activation_checkpointing_changes_neither_loss_nor_gradient() -> None:
    model, tokens = tiny().train(), ids(2, 8)
    for dropout in model.modules():
        if isinstance(dropout, torch.nn.Dropout):
            dropout.p = 0.0
    expected = torch.autograd.grad(model(tokens, labels=tokens).loss, list(model.parameters()))
    model.activation_checkpointing_enable()
    gradients = torch.autograd.grad(model(tokens, labels=tokens).loss, list(model.parameters()))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_the_tied_start_has_unit_rows_and_their_scaled_transpose_and_the_normal_start_has_neither() -> None:
    tied, normal = tiny().transformer.mixer, tiny(concept_init="normal").transformer.mixer
    torch.testing.assert_close(tied.predictor.weight.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(tied.compress.weight, 0.75 * tied.predictor.weight)
    assert normal.predictor.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert normal.compress.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("change", [{"concept_layer": 0}, {"concept_layer": 4}, {"concept_k": 41}])
def test_a_shape_that_cannot_work_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be from 1 to"):
        tiny(**change)


def test_flops_are_those_that_torch_counts() -> None:
    shape = {
        "vocab_size": 61,
        "n_positions": 48,
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "attn_implementation": "eager",
    }
    tokens = ids(2, 16)
    for model in (GPT2LMHeadModel(GPT2Config(**shape)), tiny(attn_implementation="eager")):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(tokens, use_cache=False)
        counted = counter.get_total_flops()
        if isinstance(model.config, CoCoMixConfig):
            counted += tokens.numel() * 2 * 5 * 32  # the embedding bag, which torch does not count
        assert flops_per_token(model.config, 16) * tokens.numel() == counted


def test_active_parameters_leave_out_the_compress_rows_that_a_token_does_not_read() -> None:
    stored, active = parameters(tiny())
    assert stored == sum(each.numel() for each in tiny().parameters())
    assert stored - active == (40 - 5) * 32
