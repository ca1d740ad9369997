"""Edited concepts are what the edits say of the sparse vector TopK(z), in every way of running the model."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cocomix.modeling import Ablate, CoCoMixCache, CoCoMixForCausalLM, Concepts, Edit, Scale, Set, Swap
from cocomix.modeling.concept_edits import ConceptEdits
from tests.modeling.conftest import ids, named, tiny

CONCEPTS, K = 40, 5
MIXING = [
    {"mixing": mixing, "concept_head": head}
    for mixing in ("interleave", "interleave_with_state", "add")
    for head in ("released", "equations")
] + [{"mixing": "add", "gate": True}]
PLAIN = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
STRONG = [Set(9, 20.0), Scale(3, -4.0, start=3), Ablate(7, before_selection=True)]
"""Edits that change the text."""


def written_out(edits: Sequence[Edit]) -> Edit:
    """The same on dense vectors, position by position, with one entry a concept."""

    def edit(concepts: Concepts) -> Concepts:
        rows = []
        for z, positions in zip(concepts.logits, concepts.positions.expand(len(concepts.logits), -1), strict=True):
            rows.append(torch.stack([at_one_place(*each) for each in zip(z, positions.tolist(), strict=True)]))
        dense = torch.stack(rows)
        return concepts._replace(strengths=dense, indices=torch.arange(CONCEPTS).expand(dense.shape))

    def at_one_place(z: Tensor, position: int) -> Tensor:
        here = [each for each in edits if each.start <= position and (each.stop is None or position < each.stop)]
        first = [each for each in here if getattr(each, "before_selection", False)]
        z = applied(z, first, absent=float("-inf"))
        kept = z.topk(K).indices
        sparse = torch.zeros_like(z).index_put((kept,), z[kept]).masked_fill(z == float("-inf"), 0.0)
        return applied(sparse, [each for each in here if each not in first], absent=0.0)

    return edit


def applied(x: Tensor, edits: Sequence[Edit], absent: float) -> Tensor:
    for edit in edits:
        x = x.clone()
        match edit:
            case Scale(concept=c, factor=f):
                x[c] = x[c] * f
            case Ablate(concept=c):
                x[c] = absent
            case Set(concept=c, strength=s):
                x[c] = s
            case Swap(concept=a, other=b):
                x[a], x[b] = x[b].clone(), x[a].clone()
    return x


numbers = st.integers(0, CONCEPTS - 1)
factors = st.sampled_from([-3.0, 0.0, 0.5, 2.0, 10.0])
every_edit = st.one_of(
    st.builds(Scale, numbers, factors, st.booleans()),
    st.builds(Ablate, numbers, st.booleans()),
    st.builds(Set, numbers, factors),
    st.builds(Swap, numbers, numbers),
)
somewhere = st.builds(
    lambda edit, start, length: replace(edit, start=start, stop=None if length == 0 else start + length),
    every_edit,
    st.integers(0, 6),
    st.integers(0, 4),
)
some_edits = st.lists(somewhere, max_size=5)


@settings(max_examples=40)
@given(some_edits, st.sampled_from(MIXING))
def test_values_and_gradients_equal_those_of_dense_vectors_edited_position_by_position(
    edits: list[Edit], variant: dict[str, object]
) -> None:
    model, tokens = tiny(**variant).double(), ids(2, 8)
    found = [model(tokens, concept_edits=each).logits for each in (edits, [written_out(edits)])]
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=1e-8)
    weight = torch.randn_like(found[0])
    slopes = [torch.autograd.grad((each * weight).sum(), list(model.parameters()), allow_unused=True) for each in found]
    for ours, plain in zip(*slopes, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, plain, atol=1e-9, rtol=1e-7)


@settings(max_examples=20)
@given(st.lists(some_edits, min_size=3, max_size=3))
def test_rows_of_a_batch_have_edits_of_their_own(edits: list[list[Edit]]) -> None:
    model, tokens = tiny().double(), ids(3, 8)
    together = model(tokens, concept_edits=edits).logits
    for row, some in enumerate(edits):
        alone = model(tokens[row, None], concept_edits=some).logits
        torch.testing.assert_close(together[row, None], alone, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    "nothing",
    [[], [[], []], [lambda concepts: concepts], [Scale(3, 1.0)]],
    ids=["none", "none for each row", "the same again", "times one"],
)
@pytest.mark.parametrize("change", MIXING, ids=named)
def test_edits_of_nothing_change_no_bit(change: dict[str, object], nothing: ConceptEdits) -> None:
    model, tokens = tiny(**change), ids(2, 8)
    assert torch.equal(model(tokens, concept_edits=nothing).logits, model(tokens).logits)
    options = PLAIN | {"return_dict_in_generate": True, "output_logits": True}
    edited, plain = (model.generate(tokens, **options, **more) for more in ({"concept_edits": nothing}, {}))
    assert torch.equal(torch.stack(edited.logits), torch.stack(plain.logits))


def test_an_edit_of_a_concept_that_is_not_there_changes_no_bit() -> None:
    model, tokens = tiny(), ids(2, 8)
    mixed = set(model.concepts(tokens).indices.flatten().tolist())
    absent = next(number for number in range(CONCEPTS) if number not in mixed)
    plain = model(tokens).logits
    for edit in (Scale(absent, 5.0), Ablate(absent), Set(3, 9.0, start=8)):
        assert torch.equal(model(tokens, concept_edits=[edit]).logits, plain)
    assert not torch.equal(model(tokens, concept_edits=[Set(absent, 5.0)]).logits, plain)


def test_an_ablated_concept_leaves_one_less_or_lets_the_next_one_in() -> None:
    model, tokens, found = tiny(), ids(2, 8), []

    def note(concepts: Concepts) -> Concepts:
        found.append(concepts)
        return concepts

    strongest = int(model.concepts(tokens[:1, :1]).indices[0, 0, 0])
    for before in (False, True):
        model(tokens[:1, :1], concept_edits=[Ablate(strongest, before_selection=before), note])
    one_less, replaced = found
    assert (one_less.strengths != 0).sum() == K - 1
    assert (replaced.strengths != 0).sum() == K
    assert strongest not in replaced.indices


def test_all_concepts_but_an_ablated_one_can_be_mixed() -> None:
    model = tiny(concept_k=CONCEPTS)
    edited = [model(ids(1, 4), concept_edits=[Ablate(3, before)]).logits for before in (False, True)]
    torch.testing.assert_close(edited[0], edited[1], atol=1e-4, rtol=1e-4)


def test_predicted_concepts_are_the_unedited_ones_strongest_first() -> None:
    model, tokens = tiny(), ids(2, 8)
    output = model(tokens, concept_edits=STRONG)
    assert torch.equal(output.concept_logits, model(tokens).concept_logits)
    found = model.concepts(tokens)
    assert torch.equal(found.logits, output.concept_logits)
    assert (found.strengths.diff() <= 0).all()
    assert torch.equal(found.logits.gather(-1, found.indices), found.strengths)


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sampled_from(MIXING),
    st.sampled_from(["eager", "sdpa"]),
    st.integers(0, 4),
    st.lists(some_edits, min_size=2, max_size=2),
)
def test_logits_from_a_cache_equal_the_full_forward_for_any_chunks_padding_and_edits(
    chunks: list[int], variant: dict[str, object], attention: str, padding: int, edits: list[list[Edit]]
) -> None:
    model, tokens = tiny(**variant, attn_implementation=attention).double(), ids(2, sum(chunks))
    mask = torch.ones_like(tokens)
    mask[1, : min(padding, chunks[0] - 1)] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, rows = CoCoMixCache(model.config), []
    for start, end in pairwise([0, *torch.tensor(chunks).cumsum(0).tolist()]):
        place = {"attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
        output = model(tokens[:, start:end], **place, past_key_values=cache, use_cache=True, concept_edits=edits)
        rows.append(output.logits)
    full = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False, concept_edits=edits).logits
    torch.testing.assert_close(torch.cat(rows, dim=1)[mask.bool()], full[mask.bool()], atol=1e-10, rtol=1e-8)


def greedy(model: CoCoMixForCausalLM, prompt: Tensor, edits: ConceptEdits) -> Tensor:
    """One full forward pass a token."""
    for _ in range(PLAIN["max_new_tokens"]):
        logits = model(prompt, use_cache=False, concept_edits=edits).logits
        prompt = torch.cat([prompt, logits[:, -1:].argmax(-1)], dim=1)
    return prompt


@pytest.fixture(params=MIXING, ids=named)
def model(request: pytest.FixtureRequest) -> CoCoMixForCausalLM:
    return tiny(**request.param).double()


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"prefill_chunk_size": 3}, {"prompt_lookup_num_tokens": 3}),
        *({"assistant_model": {}}, {"assistant_model": {"mixing": "none"}}),
    ],
    ids=str,
)
def test_edited_greedy_generation_takes_the_likeliest_token_of_the_edited_full_forward(
    model: CoCoMixForCausalLM, options: dict[str, Any]
) -> None:
    if "assistant_model" in options:
        options = {"assistant_model": tiny(n_layer=3, concept_layer=1, **options["assistant_model"]).double()}
    prompt = ids(1, 4).repeat(1, 2)
    generated = model.generate(prompt, **PLAIN, **options, concept_edits=STRONG)
    assert generated.tolist() == greedy(model, prompt, STRONG).tolist()
    assert generated.tolist() != model.generate(prompt, **PLAIN).tolist()


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True}], ids=lambda each: next(iter(each)))
def test_edited_generation_with_a_cache_equals_generation_without(
    model: CoCoMixForCausalLM, options: dict[str, object]
) -> None:
    def generate(use_cache: bool) -> list[list[int]]:
        torch.manual_seed(1)
        more = PLAIN | options | {"use_cache": use_cache}
        return model.generate(ids(3, 8), **more, concept_edits=[STRONG, [], [Set(1, 9.0, start=9)]]).tolist()

    assert generate(True) == generate(False)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_beams_and_further_sequences_of_a_row_have_its_edits(
    model: CoCoMixForCausalLM, options: dict[str, int]
) -> None:
    edits, prompts = [STRONG, [], [Set(1, 9.0, start=9)]], ids(3, 6)
    together = model.generate(prompts, **PLAIN, **options, concept_edits=edits)
    rows = zip(prompts, edits, strict=True)
    alone = [model.generate(prompt[None], **PLAIN, **options, concept_edits=some) for prompt, some in rows]
    assert together.tolist() == torch.cat(alone).tolist()


def test_left_padded_rows_generate_with_edits_what_they_generate_alone(model: CoCoMixForCausalLM) -> None:
    prompts, edits = (
        [ids(1, 3, seed=1), ids(1, 7, seed=2)],
        [Set(9, 20.0, start=2, stop=5), Scale(3, 8.0, True, start=6)],
    )
    alone = [model.generate(each, **PLAIN, concept_edits=edits)[0, -8:] for each in prompts]
    padded = torch.stack([F.pad(each[0], (7 - each.shape[1], 0)) for each in prompts])
    mask = torch.stack([F.pad(torch.ones_like(each[0]), (7 - each.shape[1], 0)) for each in prompts])
    together = model.generate(padded, attention_mask=mask, **PLAIN, concept_edits=edits)
    assert together[:, -8:].tolist() == torch.stack(alone).tolist()


@pytest.mark.parametrize(
    ("change", "edits", "message"),
    [
        ({}, [Scale(40, 2.0)], "no concept 40; the model has 0 to 39"),
        ({}, [Swap(0, -1)], "no concept -1"),
        ({}, [Set(40, 1.0)], "no concept 40"),
        ({}, [[Scale(4, 2.0)]], "1 lists of edits for 2 rows"),
        ({"mixing": "none"}, [Ablate(1)], "mixes no concepts .*mixing: none"),
        ({"predicts": "hidden"}, [Ablate(1)], "mixes no concepts .*predicts: hidden"),
        ({"predicts": "nothing"}, [Ablate(1)], "mixes no concepts .*predicts: nothing"),
    ],
)
def test_edits_that_mean_nothing_to_the_model_are_refused(
    change: dict[str, object], edits: ConceptEdits, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**change)(ids(2, 4), concept_edits=edits)


def test_edits_and_labels_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        tiny()(ids(2, 4), concept_edits=[Ablate(1)], concept_labels=torch.zeros(2, 4, 1, dtype=torch.int64))


@pytest.mark.parametrize("factor", [-5.0, 0.0, 2.0])
def test_what_is_ablated_stays_so_when_it_is_scaled(factor: float) -> None:
    model, tokens, ablated = tiny(), ids(2, 4), Ablate(1, before_selection=True)
    expected = model(tokens, concept_edits=[ablated]).logits
    found = model(tokens, concept_edits=[ablated, Scale(1, factor, before_selection=True)]).logits
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("predicts", ["hidden", "nothing"])
def test_labels_for_a_model_without_concepts_are_refused(predicts: str) -> None:
    with pytest.raises(ValueError, match=f"concept_labels: this model predicts no concepts .*{predicts}"):
        tiny(predicts=predicts).transformer(ids(2, 4), concept_labels=torch.zeros(2, 4, 1, dtype=torch.int64))


def test_concepts_of_a_model_without_any_are_refused() -> None:
    with pytest.raises(ValueError, match="predicts no concepts"):
        tiny(predicts="hidden").concepts(ids(1, 3))


@settings(max_examples=50)
@given(somewhere)
def test_an_edit_is_shown_as_the_call_that_makes_it(edit: Edit) -> None:
    assert eval(repr(edit)) == edit
    assert ("stop" in repr(edit)) == (edit.stop is not None)
    assert repr(Set(349, 15.0)) == "Set(349, 15.0)"
