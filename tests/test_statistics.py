import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cocomix.statistics import REPLICATES, Interval, mean_over_seeds, paired_difference

Array = NDArray[np.float64]


def made(seed: int, seeds: int, documents: int, gain: float, *, of_seeds: float) -> tuple[Array, Array, Array]:
    """Losses of two methods on documents of many lengths and difficulties; `values` are `gain` nats a token lower.

    Args:
        of_seeds: standard deviation of what a seed adds to the difference, nats a token.
    """
    generator = np.random.default_rng(seed)
    tokens = generator.integers(20, 400, documents).astype(float)
    difficulty = generator.normal(4, 0.7, documents)
    chance = generator.normal(0, of_seeds, (seeds, 1)) + generator.normal(0, 0.05, (seeds, documents))
    others = np.broadcast_to(difficulty * tokens, (seeds, documents))
    return others + (chance - gain + generator.normal(0, 0.1, documents)) * tokens, others, tokens


def test_the_mean_is_the_difference_a_token() -> None:
    values = np.array([[10.0, 60.0], [14.0, 56.0]])
    others = np.array([[20.0, 60.0], [20.0, 70.0]])
    found = paired_difference(values, others, np.array([10.0, 20.0]))
    assert found is not None
    assert found.mean == pytest.approx(-(10 + 6 + 14) / 2 / 30)


def test_identical_models_differ_by_nothing() -> None:
    values, _, tokens = made(0, 3, 50, 0.1, of_seeds=0.02)
    assert paired_difference(values, values, tokens) == (0.0, 0.0, 0.0)


def test_a_constant_difference_needs_no_interval() -> None:
    tokens = np.array([3.0, 5.0, 11.0])
    found = paired_difference(np.zeros((1, 3)), tokens[None] * 0.25, tokens)
    assert found == pytest.approx((-0.25, -0.25, -0.25))


@pytest.mark.parametrize(("seeds", "t"), [(2, 12.706), (3, 4.303), (5, 2.776)])
@pytest.mark.parametrize("documents", [40, 300])
def test_where_only_seeds_differ_both_ends_are_those_of_student_t(seeds: int, t: float, documents: int) -> None:
    by_seed, tokens = np.random.default_rng(seeds).normal(0.1, 0.02, (seeds, 1)), np.full(documents, 50.0)
    found = paired_difference(by_seed * tokens, np.zeros((seeds, documents)), tokens)
    assert found is not None
    half_width = t * by_seed.std(ddof=1) / np.sqrt(seeds)
    assert found.mean - found.low == pytest.approx(half_width, rel=0.03)
    assert found.high - found.mean == pytest.approx(half_width, rel=0.03)
    alone = mean_over_seeds([float(each) for each in by_seed[:, 0]])
    assert alone is not None
    assert alone.mean == pytest.approx(found.mean)
    assert (alone.mean - alone.low, alone.high - alone.mean) == pytest.approx((half_width, half_width), rel=0.03)


@pytest.mark.parametrize(("seeds", "of_seeds"), [(1, 0.0), (3, 0.05), (5, 0.05), (5, 0.0)])
@pytest.mark.parametrize("documents", [3, 5, 80])
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds: int, of_seeds: float, documents: int) -> None:
    held = 0
    for trial in range(200):
        found = paired_difference(*made(trial, seeds, documents, 0.03, of_seeds=of_seeds))
        assert found is not None
        held += found.low <= -0.03 <= found.high
    assert held >= 180  # of 190 expected


def test_a_clear_gain_is_supported_and_none_is_not() -> None:
    clear = paired_difference(*made(0, 3, 100, 0.2, of_seeds=0.01))
    none = paired_difference(*made(0, 3, 100, 0.0, of_seeds=0.05))
    assert clear is not None
    assert clear.high < 0
    assert none is not None
    assert none.low < 0 < none.high
    assert clear.excludes_zero
    assert not none.excludes_zero


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 40))
def test_the_interval_holds_the_mean_and_has_the_unit_of_the_values(seed: int, seeds: int, documents: int) -> None:
    values, others, tokens = made(seed, seeds, documents, 0.1, of_seeds=0.03)
    found = paired_difference(values, others, tokens)
    scaled = paired_difference(values / 2, others / 2, tokens)
    assert found is not None
    assert found.low <= found.mean <= found.high
    assert scaled == pytest.approx(tuple(each / 2 for each in found))


def test_the_order_of_the_seeds_does_not_matter() -> None:
    values, others, tokens = made(1, 4, 60, 0.1, of_seeds=0.03)
    order = [2, 0, 3, 1]
    assert paired_difference(values[order], others[order], tokens) == pytest.approx(
        paired_difference(values, others, tokens)
    )


def test_blocks_draw_the_same_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = made(2, 2, 30, 0.1, of_seeds=0.03)
    whole = paired_difference(*arguments)
    monkeypatch.setattr("cocomix.statistics._BLOCK", 30 * 7)
    assert REPLICATES % 7
    assert paired_difference(*arguments) == whole


def test_one_document_says_nothing_of_others() -> None:
    assert paired_difference(np.ones((3, 1)), np.zeros((3, 1)), np.ones(1)) is None


def test_an_interval_that_ends_at_zero_supports_nothing() -> None:
    assert not Interval(0.1, 0.0, 0.2).excludes_zero
    assert Interval(-0.1, -0.2, -0.05).excludes_zero


def test_one_seed_says_nothing_of_others() -> None:
    assert mean_over_seeds([0.3]) is None


def test_an_interval_within_what_is_possible_keeps_its_mean_and_the_ends_that_are_possible() -> None:
    assert Interval(0.97, 0.93, 1.007).within(0, 1) == Interval(0.97, 0.93, 1)
    assert Interval(-0.99, -1.2, -0.8).within(-1, 1) == Interval(-0.99, -1, -0.8)
    assert Interval(0.5, 0.4, 0.6).within(0, 1) == Interval(0.5, 0.4, 0.6)
