import math

import pytest
import torch

from cocomix.explain.cues import Cues, background_rates, best_cues, cues_of, label_of
from cocomix.explain.firings import Firings

VOCAB, BEFORE = 10, 4
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
    cues = best_cues(firings(concepts), lambda places: present[places], rates, 4, most=3)
    assert cues.numbers[:, 0].tolist() == [AT + 5, AFTER + 6, NEAR + 0, -1]
    assert (cues.numbers != NEAR + 1).all()
    assert (cues.weights[cues.numbers < 0] == 0).all()
    assert float(cues.weights[0, 0]) == pytest.approx(math.log(1 / float(rates[AT + 5])), abs=0.1)


def test_a_context_scores_the_weights_of_the_cues_that_it_has() -> None:
    cues = Cues(torch.tensor([[AT + 2, NEAR + 3], [AFTER + 5, -1]]), torch.tensor([[2.0, 0.5], [1.0, 0.0]]))
    present = cues_of(torch.tensor([[1, 3, 3, 5, 2, 9], [1, 1, 1, 5, 4, -1]]), BEFORE, VOCAB)
    assert cues.score(torch.tensor([0, 0]), present).tolist() == [2.5, 0.0]
    assert cues.score(torch.tensor([1, 1]), present).tolist() == [1.0, 1.0]


def test_a_label_names_places_and_shows_space() -> None:
    texts = [" of", "\n", "x", 'a"', *"abcdef"]
    assert label_of([AFTER + 1, AT + 0, AT + 3, -1], texts) == 'at " of", "a\\""; after "\\n"'
    assert label_of([-1, -1], texts) == ""
