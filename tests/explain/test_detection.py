import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cocomix.explain.detection import detection

numbers = st.lists(st.integers(-2, 3).map(float), min_size=1, max_size=8)


@given(numbers, numbers)
def test_scores_are_those_of_the_definition(firing: list[float], others: list[float]) -> None:
    scores = detection(torch.tensor([[*firing, math.nan]]), torch.tensor([[math.nan, *others]]))
    pairs = [(yes > no) + 0.5 * (yes == no) for yes in firing for no in others]
    assert float(scores.auc) == pytest.approx(sum(pairs) / len(pairs))
    right = sum(each > 0 for each in firing) / len(firing)
    rejected = sum(each <= 0 for each in others) / len(others)
    assert float(scores.balanced_accuracy) == pytest.approx((right + rejected) / 2)


def test_many_concepts_at_a_time_are_scored_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocomix.explain.detection.AT_A_TIME", 7)
    generator = torch.Generator().manual_seed(0)
    firing, others = (
        torch.randint(-2, 3, shape, generator=generator)
        .float()
        .masked_fill(torch.rand(shape, generator=generator) < 0.3, math.nan)
        for shape in ((50, 9), (50, 33))
    )
    firing[4], others[20] = math.nan, math.nan
    scores = detection(firing, others)
    for concept in range(50):
        yes, no = (each[concept][~each[concept].isnan()] for each in (firing, others))
        above = (yes[:, None] > no).float() + 0.5 * (yes[:, None] == no)
        torch.testing.assert_close(scores.auc[concept], above.mean(), rtol=0, atol=1e-7, equal_nan=True)
        assert int(scores.firings[concept]) == len(yes)


def test_a_concept_without_held_out_firings_has_no_score() -> None:
    scores = detection(torch.full((70, 2), math.nan), torch.ones(70, 3))
    assert scores.auc.isnan().all()
    assert scores.balanced_accuracy.isnan().all()
