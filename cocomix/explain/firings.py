"""Where concepts fire: what is kept of a text, however long.

What is kept of a concept has a fixed size: sums, its strongest firings (of a window the strongest one only, so that
they are not one sentence over and over), and a uniform sample of its firings. The sample is those with the smallest
hashes: like the strongest, the smallest of two parts together are among the smallest of each. So shards of text can be
looked at in any order, by any number of processes, and merged.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor

INFINITY = 0x7F800000
"""Of float32, as an integer: positive numbers are ordered as the integers of their bits are."""


class Firings(NamedTuple):
    """Some firings of concepts."""

    concepts: Tensor
    """int64 [n]."""
    places: Tensor
    """int64 [n]: window of the split times context, plus position."""
    strengths: Tensor
    """float32 [n], positive."""
    around: Tensor
    """How strongly the concept fires around the place: float32 [n, before + 1 + after], NaN beyond the window.

    [n, 0] where that is not kept."""

    def at(self, rows: Tensor) -> "Firings":
        """Those of the given rows."""
        return Firings(*(each[rows] for each in self))

    def weakness(self) -> Tensor:
        """Keys that are the smaller, the stronger: int64 [n]."""
        return INFINITY - self.strengths.view(torch.int32).long()

    def hashes(self, seed: int) -> Tensor:
        """Keys that are as good as random, but always the same: int64 [n] below 2^32."""
        return _mixed(_mixed(self.places + int(_mixed(torch.tensor(seed)))) + self.concepts) & 0xFFFFFFFF

    def smallest(self, keys: Tensor, most: int) -> "Firings":
        """For each concept the firings with the smallest keys, at most so many: by concept, then key, then place.

        Args:
            keys: int64 [n] from 0 to 2^32.
        """
        order = (self.concepts << 32 | keys).argsort(stable=True)
        return self.at(order[rank_within(self.concepts[order]) < most])


class FiringLimits(NamedTuple):
    """Firings to keep of each concept."""

    strongest: int
    pool: int
    """Of the sample, those whose surroundings are kept too."""
    sample: int
    before: int
    after: int
    """Tokens around a firing."""
    seed: int


class ScanResult(NamedTuple):
    """What was seen of a part of the text."""

    counts: Tensor
    """Firings of each concept: int64 [concepts]."""
    sums: Tensor
    """Of their strengths: float64 [concepts]."""
    tokens: Tensor
    """Occurrences of each token: int64 [vocab]."""
    strongest: Firings
    pool: Firings
    sample: Firings
    background: Tensor
    """The places of `TextShard.background`: int64 [m]."""
    background_fires: Tensor
    """Which concepts fire there: bool [m, concepts]."""


KEPT = ("strongest", "pool", "sample")


def pack(seen: ScanResult) -> bytes:
    """`seen` as a safetensors file."""
    tensors: dict[str, Tensor] = {}
    for name, each in seen._asdict().items():
        tensors |= {f"{name}.{key}": part for key, part in each._asdict().items()} if name in KEPT else {name: each}
    return save({name: each.cpu().contiguous() for name, each in tensors.items()})


def unpack(path: Path) -> ScanResult:
    """Read what `pack` made."""
    tensors = load_file(path)
    kept = {name: Firings(*(tensors.pop(f"{name}.{key}") for key in Firings._fields)) for name in KEPT}
    return ScanResult(**kept, **tensors)  # type: ignore[arg-type]


def merge(first: ScanResult, second: ScanResult, keep: FiringLimits) -> ScanResult:
    """What was seen of two parts, the first of which comes first in the text."""
    strongest, pool, sample = (
        Firings(*(torch.cat(each) for each in zip(*parts, strict=True)))
        for parts in zip(first[3:6], second[3:6], strict=True)
    )
    return ScanResult(
        first.counts + second.counts,
        first.sums + second.sums,
        first.tokens + second.tokens,
        strongest.smallest(strongest.weakness(), keep.strongest),
        pool.smallest(pool.hashes(keep.seed), keep.pool),
        sample.smallest(sample.hashes(keep.seed), keep.sample),
        torch.cat([first.background, second.background]),
        torch.cat([first.background_fires, second.background_fires]),
    )


def rank_within(groups: Tensor) -> Tensor:
    """How many of the same number come before: int64 [n]; of `groups` [n], ascending."""
    counts = groups.bincount()
    starts = counts.cumsum(0) - counts
    return torch.arange(len(groups), device=groups.device) - starts[groups]


class BestRows(NamedTuple):
    """The best rows of each group, by group."""

    rows: Tensor
    """int64 [m]."""
    rank: Tensor
    """Of each in its group, from 0: int64 [m]."""


def best_of_each(groups: Tensor, scores: Tensor, most: int) -> BestRows:
    """The rows with the largest scores of each group, at most so many; of equal ones the first.

    Args:
        groups: int64 [n], ascending. scores: [n].
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    rank = rank_within(groups)
    return BestRows(order[rank < most], rank[rank < most])


def _mixed(numbers: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014), whose every bit depends on all: int64 [n]."""
    numbers = numbers + -7046029254386353131
    numbers = (numbers ^ _shifted(numbers, 30)) * -4658895280553007687
    numbers = (numbers ^ _shifted(numbers, 27)) * -7723592293110705685
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shifted right as unsigned numbers."""
    return numbers >> bits & (1 << (64 - bits)) - 1
