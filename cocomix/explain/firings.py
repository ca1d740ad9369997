"""Firings of concepts: a summary of fixed size per concept, however long the text.

It holds sums, the strongest firings (at most one per window, so that they are not all from one sentence), and a uniform
sample of the firings: those with the smallest hashes. The smallest of two parts together are among the smallest of
each, and so are the strongest. So processes can scan shards of text in any order and merge the results.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

INFINITY = 0x7F800000
"""float32 infinity as an integer: positive floats have the same order as their bit patterns."""


class Firings(NamedTuple):
    """A set of firings."""

    concepts: Tensor
    """int64 [n]."""
    places: Tensor
    """int64 [n]: index of the window in the split times context, plus position."""
    strengths: Tensor
    """float32 [n], positive."""
    around: Tensor
    """Strengths of the concept around the place: float32 [n, before + 1 + after], NaN outside the window.

    [n, 0] where they are not kept."""

    def at(self, rows: Tensor) -> "Firings":
        """The firings of these rows."""
        return Firings(*(each[rows] for each in self))

    def weakness(self) -> Tensor:
        """Keys that decrease with strength: int64 [n]."""
        return INFINITY - self.strengths.view(torch.int32).long()

    def hashes(self, seed: int) -> Tensor:
        """Deterministic pseudo-random keys: int64 [n] below 2^32."""
        return _mixed(_mixed(self.places + int(_mixed(torch.tensor(seed)))) + self.concepts) & 0xFFFFFFFF

    def smallest(self, keys: Tensor, most: int) -> "Firings":
        """Up to `most` firings with the smallest keys for each concept, sorted by concept, key, and order in `self`.

        Args:
            keys: int64 [n] from 0 to 2^32.
        """
        order = _stable_order(self.concepts << 32 | keys)
        return self.at(order[rank_within(self.concepts[order]) < most])


class FiringLimits(NamedTuple):
    """How many firings of each concept to keep."""

    strongest: int
    pool: int
    """Number of firings of the sample whose surroundings are kept too."""
    sample: int
    before: int
    after: int
    """Number of tokens around a firing."""
    seed: int


class ScanResult(NamedTuple):
    """Firings in a part of the text."""

    counts: Tensor
    """Number of firings of each concept: int64 [concepts]."""
    sums: Tensor
    """Sum of the strengths of each concept: float64 [concepts]."""
    tokens: Tensor
    """Number of occurrences of each token: int64 [vocab]."""
    strongest: Firings
    pool: Firings
    sample: Firings
    background: Tensor
    """The places of `TextShard.background`: int64 [m]."""
    background_fires: Tensor
    """Whether each concept fires there: bool [m, concepts]."""


KEPT = ("strongest", "pool", "sample")


def pack(seen: ScanResult) -> bytes:
    """Serialise `seen` as a safetensors file."""
    tensors: dict[str, Tensor] = {}
    for name, each in seen._asdict().items():
        tensors |= {f"{name}.{key}": part for key, part in each._asdict().items()} if name in KEPT else {name: each}
    return save({name: each.cpu().contiguous() for name, each in tensors.items()})


def unpack(path: Path) -> ScanResult:
    """Inverse of `pack`."""
    tensors = load_file(path)
    kept = {name: Firings(*(tensors.pop(f"{name}.{key}") for key in Firings._fields)) for name in KEPT}
    return ScanResult(**kept, **tensors)  # type: ignore[arg-type]


def merge(first: ScanResult, second: ScanResult, keep: FiringLimits) -> ScanResult:
    """Merge the results of two parts; `first` comes first in the text."""
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
    """Rank of each item in its group, from 0: int64 [n]; `groups` [n] is ascending."""
    counts = groups.bincount()
    starts = counts.cumsum(0) - counts
    return torch.arange(len(groups), device=groups.device) - starts[groups]


class BestRows(NamedTuple):
    """The best rows of each group, sorted by group."""

    rows: Tensor
    """int64 [m]."""
    rank: Tensor
    """Rank of each row in its group, from 0: int64 [m]."""


def best_of_each(groups: Tensor, scores: Tensor, most: int) -> BestRows:
    """Up to `most` rows of each group with the largest scores; ties go to the first row.

    Args:
        groups: int64 [n], ascending.
        scores: [n].
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    rank = rank_within(groups)
    return BestRows(order[rank < most], rank[rank < most])


def _stable_order(keys: Tensor) -> Tensor:
    """Stable argsort: int64 [n]. On a CPU numpy's, which only merges what is sorted, such as two parts of the text."""
    return torch.from_numpy(np.argsort(keys.numpy(), kind="stable")) if keys.is_cpu else keys.argsort(stable=True)


def _mixed(numbers: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014): each output bit depends on all input bits; int64 [n]."""
    numbers = numbers + -7046029254386353131
    numbers = (numbers ^ _shifted(numbers, 30)) * -4658895280553007687
    numbers = (numbers ^ _shifted(numbers, 27)) * -7723592293110705685
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Right shift as of unsigned integers."""
    return numbers >> bits & (1 << (64 - bits)) - 1
