from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cocomix.explain.firings import FiringLimits, Firings, ScanResult, best_of_each, merge, pack, rank_within, unpack

CONCEPTS = 5


def drawn(seed: int, size: int, first: int = 0) -> Firings:
    """Firings in the order of their places, some of them equally strong."""
    generator = torch.Generator().manual_seed(seed)
    return Firings(
        torch.randint(CONCEPTS, (size,), generator=generator),
        first + torch.arange(size) // 2,
        torch.randint(1, 9, (size,), generator=generator) / 8,
        torch.rand(size, 3, generator=generator),
    )


def seen(firings: Firings, keep: FiringLimits) -> ScanResult:
    strongest = firings.smallest(firings.weakness(), keep.strongest)
    sample = firings.smallest(firings.hashes(keep.seed), keep.sample)
    pool = firings.smallest(firings.hashes(keep.seed), keep.pool)
    counts = firings.concepts.bincount(minlength=CONCEPTS)
    sums = firings.concepts.bincount(firings.strengths.double(), minlength=CONCEPTS)
    places = firings.places[:4]
    fires = torch.ones(len(places), CONCEPTS, dtype=torch.bool)
    return ScanResult(counts, sums, firings.places.bincount(minlength=200), strongest, pool, sample, places, fires)


@given(st.integers(0, 99), st.integers(0, 80), st.integers(0, 80), st.integers(1, 9))
def test_what_is_kept_of_two_parts_is_what_is_kept_of_the_whole(seed: int, one: int, two: int, most: int) -> None:
    keep = FiringLimits(strongest=most, pool=2, sample=most + 1, before=1, after=1, seed=seed)
    first, second = drawn(seed, one), drawn(seed + 1, two, first=100)
    whole = Firings(*(torch.cat(each) for each in zip(first, second, strict=True)))
    merged = merge(seen(first, keep), seen(second, keep), keep)
    expected = seen(whole, keep)
    for name in ("counts", "sums", "tokens"):
        torch.testing.assert_close(getattr(merged, name), getattr(expected, name), rtol=0, atol=0)
    for name in ("strongest", "pool", "sample"):
        for a, b in zip(getattr(merged, name), getattr(expected, name), strict=True):
            assert torch.equal(a, b)


def test_the_strongest_are_the_strongest_and_the_earlier_of_equals() -> None:
    firings = drawn(0, 60)
    kept = firings.smallest(firings.weakness(), 3)
    for concept in range(CONCEPTS):
        own = [i for i in range(60) if firings.concepts[i] == concept]
        expected = sorted(own, key=lambda i: (-float(firings.strengths[i]), int(firings.places[i]), i))[:3]
        assert kept.places[kept.concepts == concept].tolist() == firings.places[expected].tolist()


def test_a_sample_favours_no_place_and_no_strength_and_differs_by_seed_and_concept() -> None:
    size = 4000
    places = torch.arange(size)
    pair = [Firings(torch.full((size,), concept), places, torch.ones(size), torch.empty(size, 0)) for concept in (0, 1)]
    chosen = [each.smallest(each.hashes(seed), 400).places for each, seed in ((pair[0], 0), (pair[0], 1), (pair[1], 0))]
    for each in chosen:
        assert len(each.unique()) == 400
        assert float(each.double().mean()) == pytest.approx(size / 2, rel=0.1)
    for other in chosen[1:]:
        shared = len(set(chosen[0].tolist()) & set(other.tolist()))
        assert 10 < shared < 80  # by chance: 40


def test_what_was_seen_can_be_written_and_read(tmp_path: Path) -> None:
    keep = FiringLimits(2, 1, 3, 1, 1, 0)
    before = seen(drawn(3, 50), keep)
    (tmp_path / "seen").write_bytes(pack(before))
    after = unpack(tmp_path / "seen")
    assert torch.equal(after.background_fires, before.background_fires)
    assert all(torch.equal(a, b) for a, b in zip(after.sample, before.sample, strict=True))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=40), st.integers(1, 4))
def test_the_best_of_each_group_come_first_and_the_first_of_equals(rows: list[tuple[int, int]], most: int) -> None:
    rows = sorted(rows, key=lambda each: each[0])
    groups, scores = (torch.tensor([each[i] for each in rows], dtype=torch.int64) for i in (0, 1))
    best, rank = best_of_each(groups, scores, most)
    expected = []
    for group in range(5):
        own = [i for i, each in enumerate(rows) if each[0] == group]
        expected += sorted(own, key=lambda i: -rows[i][1])[:most]
    assert best.tolist() == expected
    assert rank.tolist() == rank_within(groups[best]).tolist()
