import math

import pytest
import torch
from torch import Tensor

from cocomix.explain.cues import Cues, background_rates, best_cues, cues_of, label_of
from cocomix.explain.firings import Firings

VOCAB, BEFORE = 10, 4
VISIBLE = torch.ones(VOCAB, dtype=torch.bool)
AT, AFTER, BEFORE_IT, NEAR = (place * VOCAB for place in range(4))


def firings(concepts: list[int]) -> Firings:
    n = len(concepts)
    return Firings(torch.tensor(concepts), torch.arange(n), torch.ones(n), torch.empty(n, 0))


def test_the_cues_of_a_context_are_its_tokens_at_their_places_each_once() -> None:
    (cues,) = cues_of(torch.tensor([[7, 7, 3, 5, 2, 9]]), BEFORE, VOCAB).tolist()
    assert cues[:3] == [AT + 2, AFTER + 5, BEFORE_IT + 9]
    assert sorted(cues[3:]) == [-1, NEAR + 3, NEAR + 7]


def test_nothing_beyond_a_window_is_a_cue() -> None:
    (cues,) = cues_of(torch.tensor([[-1, -1, -1, -1, 2, -1]]), BEFORE, VOCAB).tolist()
    assert sorted(cues) == [-1] * 5 + [AT + 2]


def test_a_planted_cue_is_found_at_its_place_and_what_is_everywhere_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCAB, (600, BEFORE + 2), generator=generator)
    ids[:, 0] = 1  # everywhere
    concepts = [0] * 200 + [1] * 200 + [2] * 200
    ids[:200, BEFORE] = 5  # concept 0 fires at 5
    ids[200:400, BEFORE - 1] = 6  # concept 1 after 6
    ids[400:500, 1] = 0  # concept 2, half of the time, near 0
    text = torch.randint(2, VOCAB, (500, BEFORE + 2), generator=generator)
    text[:, 0] = 1
    rates = background_rates(torch.tensor([1, 500] + [300] * 8), cues_of(text, BEFORE, VOCAB))
    present = cues_of(ids, BEFORE, VOCAB)
    cues = best_cues(firings(concepts), lambda places: present[places], rates, VISIBLE, 4, most=3)
    assert cues.numbers[:, 0].tolist() == [AT + 5, AFTER + 6, NEAR + 0, -1]
    assert (cues.numbers != NEAR + 1).all()
    assert (cues.weights[cues.numbers < 0] == 0).all()
    assert float(cues.weights[0, 0]) == pytest.approx(math.log(1 / float(rates[AT + 5])), abs=0.1)


def planted(concepts: list[int], cues: dict[int, tuple[int, int]], share: float = 0.5) -> Tensor:
    """Random contexts of tokens from 2, with a token planted in a column of a share of a concept's contexts."""
    ids = torch.randint(2, VOCAB, (len(concepts), BEFORE + 2), generator=torch.Generator().manual_seed(0))
    for concept, (column, token) in cues.items():
        rows = (torch.tensor(concepts) == concept).nonzero().flatten()
        ids[rows[: int(share * len(rows))], column] = token
    return ids


def twins() -> tuple[list[int], Tensor]:
    """The concepts of some firings, and the cues there: the first two fire at token 5, sometimes after 0 and 1."""
    concepts = [each for each in range(10) for _ in range(200)]
    ids = planted(concepts, {0: (BEFORE - 1, 0), 1: (BEFORE - 1, 1)}, share=0.2)
    ids[:400, BEFORE] = 5
    return concepts, cues_of(ids, BEFORE, VOCAB)


def test_concepts_that_fire_at_the_same_token_are_told_apart_by_where_they_differ() -> None:
    concepts, present = twins()
    rates = torch.full((4 * VOCAB,), 0.4, dtype=torch.float64)
    rates[[AT + 5, AFTER + 0, AFTER + 1]] = 0.1
    cues = best_cues(firings(concepts), lambda places: present[places], rates, VISIBLE, 10, most=3)
    assert cues.numbers[:2].tolist() == [[AT + 5, AFTER + 0, -1], [AT + 5, AFTER + 1, -1]]
    cues = best_cues(firings(concepts), lambda places: present[places], rates, VISIBLE, 10, most=1)
    assert cues.numbers[:2].tolist() == [[AFTER + 0], [AFTER + 1]]


def test_a_cue_that_is_rarer_than_in_the_text_tells_no_concepts_apart() -> None:
    concepts, present = twins()
    rates = torch.full((4 * VOCAB,), 0.4, dtype=torch.float64)
    rates[AT + 5] = 0.1
    cues = best_cues(firings(concepts), lambda places: present[places], rates, VISIBLE, 10, most=3)
    assert cues.numbers[:2].tolist() == [[AT + 5, -1, -1]] * 2
    assert (cues.weights[cues.numbers >= 0] > 0).all()


def test_cues_are_the_same_however_many_concepts_are_counted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    concepts = [each for each in range(12) for _ in range(100)]
    present = cues_of(planted(concepts, {each: (BEFORE, each // 3) for each in range(10)}), BEFORE, VOCAB)
    rates = torch.full((4 * VOCAB,), 0.05, dtype=torch.float64)
    together = best_cues(firings(concepts), lambda places: present[places], rates, VISIBLE, 17, most=2)
    monkeypatch.setattr("cocomix.explain.cues.AT_A_TIME", 2)
    in_parts = best_cues(firings(concepts), lambda places: present[places], rates, VISIBLE, 17, most=2)
    assert torch.equal(in_parts.numbers, together.numbers)
    assert torch.equal(in_parts.weights, together.weights)


def test_what_most_concepts_fire_at_names_none_of_them() -> None:
    concepts = [each for each in range(8) for _ in range(100)]
    ids = planted(concepts, {each: (BEFORE - 1, each % 2) for each in range(8)})
    ids[:, BEFORE] = 5
    present = cues_of(ids, BEFORE, VOCAB)
    rates = torch.full((4 * VOCAB,), 0.1, dtype=torch.float64)
    cues = best_cues(firings(concepts), lambda places: present[places], rates, VISIBLE, 8, most=3)
    assert (cues.numbers != AT + 5).all()
    assert [cues.numbers[each, 0] for each in range(8)] == [AFTER + each % 2 for each in range(8)]


def test_of_two_cues_alike_the_visible_one_comes_first() -> None:
    concepts = [0] * 200 + [1] * 200
    ids = planted(concepts, {0: (BEFORE, 0)})
    ids[100:200, BEFORE] = 1
    present = cues_of(ids, BEFORE, VOCAB)
    rates = torch.full((4 * VOCAB,), 0.1, dtype=torch.float64)
    for blank, seen in ((0, 1), (1, 0)):
        visible = VISIBLE.clone()
        visible[blank] = False
        cues = best_cues(firings(concepts), lambda places: present[places], rates, visible, 2, most=2)
        assert cues.numbers[0, 0] == AT + seen


def test_a_context_scores_the_weights_of_the_cues_that_it_has() -> None:
    cues = Cues(torch.tensor([[AT + 2, NEAR + 3], [AFTER + 5, -1]]), torch.tensor([[2.0, 0.5], [1.0, 0.0]]))
    present = cues_of(torch.tensor([[1, 3, 3, 5, 2, 9], [1, 1, 1, 5, 4, -1]]), BEFORE, VOCAB)
    assert cues.score(torch.tensor([0, 0]), present).tolist() == [2.5, 0.0]
    assert cues.score(torch.tensor([1, 1]), present).tolist() == [1.0, 1.0]


def test_all_concepts_are_scored_at_once_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.stack([torch.randperm(4 * VOCAB, generator=generator)[:5] for _ in range(30)])
    numbers[torch.rand(numbers.shape, generator=generator) < 0.3] = -1
    cues = Cues(numbers, torch.randn(numbers.shape, generator=generator).masked_fill(numbers < 0, 0))
    present = cues_of(torch.randint(-1, VOCAB, (20, BEFORE + 2), generator=generator), BEFORE, VOCAB)
    one_by_one = [cues.score(torch.full((20,), concept), present) for concept in range(30)]
    assert torch.equal(cues.score_all(present), torch.stack(one_by_one))


def test_a_label_names_places_and_shows_space() -> None:
    texts = [" of", "\n", "x", 'a"', *"abcdef"]
    assert label_of([AFTER + 1, AT + 0, AT + 3, -1], texts) == 'at " of", "a\\""; after "\\n"'
    assert label_of([-1, -1], texts) == ""
