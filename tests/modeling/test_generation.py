"""Generation with a cache gives what the uncached full forward gives."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StaticCache
from transformers.utils import is_flash_attn_2_available

from cocomix.modeling import CoCoMixCache, CoCoMixLanguageModel
from cocomix.modeling.body import _PairLayer
from tests.modeling.conftest import LLAMA, MAIN, VARIANTS, ids, named, precise, tiny, tolerance

NEW = 12
PLAIN = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}


EAGER = {"attn_implementation": "eager"}


@pytest.fixture(
    params=[*MAIN, {"predicts": "nothing", "mlp_width": 20, "gate": True}, LLAMA, EAGER, LLAMA | EAGER], ids=named
)
def model(request: pytest.FixtureRequest) -> CoCoMixLanguageModel:
    return tiny(**{"attn_implementation": "sdpa"} | request.param)


def greedy(model: CoCoMixLanguageModel, prompt: Tensor, steps: int = NEW) -> Tensor:
    """One full forward pass a token."""
    for _ in range(steps):
        prompt = torch.cat([prompt, model(prompt, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return prompt


class Gumbel(LogitsProcessor):
    """Sampling, with noise that is a function of the position: greedy decoding of what it returns."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(input_ids.shape[1])
        return scores - torch.empty_like(scores).exponential_(generator=generator).log()


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.sampled_from(VARIANTS),
    st.sampled_from(["eager", "sdpa"]),
    st.integers(0, 6),
)
def test_logits_from_a_cache_equal_the_full_forward_for_any_chunks_and_padding(
    chunks: list[int], variant: dict[str, object], attention: str, padding: int
) -> None:
    model, tokens = precise(tiny(**variant, attn_implementation=attention)), ids(2, sum(chunks))
    mask = torch.ones_like(tokens)
    mask[1, : min(padding, chunks[0] - 1)] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, rows = CoCoMixCache(model.config), []
    for start, end in pairwise([0, *torch.tensor(chunks).cumsum(0).tolist()]):
        output = model(
            tokens[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        rows.append(output.logits)
    full = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(torch.cat(rows, dim=1)[mask.bool()], full[mask.bool()], **tolerance(model))


def test_greedy_generation_takes_the_likeliest_token_of_the_full_forward(model: CoCoMixLanguageModel) -> None:
    generated = model.generate(ids(3, 4), **PLAIN)
    assert generated.tolist() == greedy(model, ids(3, 4)).tolist()
    assert len({tuple(row[4:]) for row in generated.tolist()}) == 3  # the prompts are read


def test_continuous_batching_is_refused_where_a_token_is_two_positions() -> None:
    with pytest.raises(ValueError, match="the paged cache of continuous batching cannot hold"):
        tiny().generate_batch([[1, 2, 3]])


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"prefill_chunk_size": 3}, {"cache_implementation": "dynamic"}, {"repetition_penalty": 1.3}],
    ids=lambda each: next(iter(each)),
)
def test_other_generation_with_a_cache_equals_generation_without(
    model: CoCoMixLanguageModel, options: dict[str, Any]
) -> None:
    of_the_cache = ("prefill_chunk_size", "cache_implementation")
    without = {key: value for key, value in options.items() if key not in of_the_cache}
    expected = model.generate(ids(3, 8), **PLAIN, **without, use_cache=False)
    assert model.generate(ids(3, 8), **PLAIN, **options).tolist() == expected.tolist()


def test_sampling_with_a_cache_draws_the_same_tokens_from_the_same_seed(model: CoCoMixLanguageModel) -> None:
    def sample(use_cache: bool) -> Tensor:
        torch.manual_seed(1)
        return model.generate(ids(3, 5), **(PLAIN | {"do_sample": True}), top_k=0, use_cache=use_cache)

    assert sample(True).tolist() == sample(False).tolist()


def test_sampling_with_given_noise_takes_the_tokens_of_the_full_forward(model: CoCoMixLanguageModel) -> None:
    expected, noise = ids(2, 5), Gumbel()
    for _ in range(NEW):
        scores = noise(expected, model(expected, use_cache=False).logits[:, -1])
        expected = torch.cat([expected, scores.argmax(-1, keepdim=True)], dim=1)
    generated = model.generate(ids(2, 5), **PLAIN, logits_processor=LogitsProcessorList([noise]))
    assert generated.tolist() == expected.tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_left_padded_rows_generate_what_they_generate_alone(model: CoCoMixLanguageModel, beams: int) -> None:
    prompts, options = [ids(1, 3, seed=1), ids(1, 7, seed=2)], PLAIN | {"num_beams": beams}
    alone = [model.generate(each, **options)[0, -NEW:] for each in prompts]
    padded = torch.stack([F.pad(each[0], (7 - each.shape[1], 0)) for each in prompts])
    mask = torch.stack([F.pad(torch.ones_like(each[0]), (7 - each.shape[1], 0)) for each in prompts])
    together = model.generate(padded, attention_mask=mask, **options)
    assert together[:, -NEW:].tolist() == torch.stack(alone).tolist()


def test_a_returned_cache_can_be_gone_on_from(model: CoCoMixLanguageModel) -> None:
    first = model.generate(ids(2, 5), **(PLAIN | {"max_new_tokens": 4}), return_dict_in_generate=True)
    rest = model.generate(first.sequences, **(PLAIN | {"max_new_tokens": 8}), past_key_values=first.past_key_values)
    assert rest.tolist() == greedy(model, ids(2, 5)).tolist()
    more_text = torch.cat([rest, ids(2, 6, seed=9)], dim=1)
    third = model.generate(more_text, **PLAIN, past_key_values=first.past_key_values)
    assert third.tolist() == greedy(model, more_text).tolist()


def test_prompt_lookup_gives_the_greedy_tokens_also_after_guesses_that_were_wrong(
    model: CoCoMixLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cropped: list[int] = []
    crop = DynamicCache.crop  # of CoCoMixCache too
    monkeypatch.setattr(DynamicCache, "crop", lambda cache, count: (cropped.append(count), crop(cache, count)))
    prompt = ids(1, 4).repeat(1, 3)
    assert model.generate(prompt, **PLAIN, prompt_lookup_num_tokens=3).tolist() == greedy(model, prompt).tolist()
    assert any(cropped)


def test_assistance_by_another_model_gives_the_greedy_tokens(model: CoCoMixLanguageModel) -> None:
    prompt = ids(1, 6)
    assistant = tiny(n_layer=3, concept_layer=1)
    assert model.generate(prompt, **PLAIN, assistant_model=assistant).tolist() == greedy(model, prompt).tolist()


@pytest.mark.parametrize("asked", ["output_attentions", "output_hidden_states"])
def test_assistance_refuses_what_it_would_cut_by_tokens_where_a_token_is_two_positions(asked: str) -> None:
    options = PLAIN | {"return_dict_in_generate": True, "prompt_lookup_num_tokens": 3, asked: True}
    prompt = ids(1, 4).repeat(1, 3)
    with pytest.raises(ValueError, match=f"{asked}: assisted decoding cuts it by tokens"):
        tiny().generate(prompt, **options)
    adding = tiny(mixing="add")
    adding.set_attn_implementation("eager")
    assert adding.generate(prompt, **options).sequences.tolist() == greedy(adding, prompt).tolist()


@pytest.mark.parametrize("more", [{}, {"num_beams": 2}, {"do_sample": True}], ids=["greedy", "beams", "sampled"])
def test_what_generation_returns_on_request_is_whole(more: dict[str, object]) -> None:
    model, prompt = tiny(), ids(1, 5)
    model.set_attn_implementation("eager")
    options = PLAIN | more | {"return_dict_in_generate": True}
    found = model.generate(prompt, output_hidden_states=True, output_attentions=True, **options)
    first, later = found.hidden_states[0], found.hidden_states[1]
    assert [each.shape[1] for each in first] == [5, 5, 5, 10, 5]
    assert [each.shape[1] for each in later] == [1, 1, 1, 2, 1]
    assert [tuple(each.shape[2:]) for each in found.attentions[0]] == [(5, 5), (5, 5), (10, 10), (5, 10)]
    assert [tuple(each.shape[2:]) for each in found.attentions[1]] == [(1, 6), (1, 6), (2, 12), (1, 12)]


def test_a_cache_holds_two_positions_a_token_above_the_concept_layer_and_loses_them_by_tokens() -> None:
    model, cache = tiny(), CoCoMixCache(tiny().config)
    model(ids(2, 9), past_key_values=cache, use_cache=True)
    assert [cache.get_seq_length(layer) for layer in range(4)] == [9, 9, 18, 18]
    cache.crop(-2)
    assert [cache.get_seq_length(layer) for layer in range(4)] == [7, 7, 14, 14]
    assert [type(each) is _PairLayer for each in cache.layers] == [False, False, True, True]


def test_a_cache_is_read_also_where_none_is_to_be_returned() -> None:
    model, tokens = tiny(), ids(2, 9)
    cache = model(tokens[:, :5]).past_key_values
    output = model(tokens[:, 5:], past_key_values=cache, use_cache=False)
    torch.testing.assert_close(output.logits, model(tokens).logits[:, 5:], atol=1e-4, rtol=1e-4)
    assert output.past_key_values is None


@pytest.mark.parametrize("chunks", [[9], [1, 8], [4, 3, 2]])
def test_logits_from_a_static_cache_equal_the_full_forward(model: CoCoMixLanguageModel, chunks: list[int]) -> None:
    tokens, cache = ids(2, 9), StaticCache(config=model.config, max_cache_len=24)
    rows = [model(some, past_key_values=cache, use_cache=True).logits for some in tokens.split(chunks, dim=1)]
    full = model(tokens, use_cache=False).logits
    torch.testing.assert_close(torch.cat(rows, dim=1), full, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", [{}, {"predicts": "nothing"}], ids=named)
def test_caches_that_cannot_hold_two_lengths_are_refused_with_the_reason(change: dict[str, object]) -> None:
    model = tiny(**change)
    with pytest.raises(ValueError, match="cannot hold a CoCoMix model's two lengths"):
        model.generate(ids(1, 3), max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="give a CoCoMixCache"):
        model.generate(ids(1, 3), max_new_tokens=2, past_key_values=DynamicCache(config=model.config))


def test_without_interleaving_the_librarys_caches_will_do() -> None:
    model = tiny(mixing="add")
    expected = greedy(model, ids(2, 3)).tolist()
    for kind in ("static", "dynamic"):
        assert model.generate(ids(2, 3), **PLAIN, cache_implementation=kind).tolist() == expected
    assert model.generate(ids(2, 3), **PLAIN, past_key_values=DynamicCache(config=model.config)).tolist() == expected


@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()), reason="needs flash-attn and a GPU"
)
@pytest.mark.parametrize("change", [*MAIN, LLAMA], ids=named)
def test_flash_attention_gives_the_logits_of_sdpa_with_padding_and_from_a_cache(change: dict[str, object]) -> None:
    tokens = ids(2, 12).cuda()
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    rows = {}
    for kind in ("sdpa", "flash_attention_2"):
        model = tiny(**change, attn_implementation=kind, n_embd=64, initializer_range=0.02).to("cuda", torch.bfloat16)
        whole = model(tokens, attention_mask=mask, use_cache=False).logits
        start = model(tokens[:, :7], attention_mask=mask[:, :7])
        steps, cache = [start.logits], start.past_key_values
        for t in range(7, 12):
            steps.append(model(tokens[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache).logits)
        rows[kind] = torch.cat([whole, torch.cat(steps, dim=1)])[mask.bool().repeat(2, 1)]
    torch.testing.assert_close(rows["flash_attention_2"], rows["sdpa"], atol=3e-2, rtol=3e-2)
