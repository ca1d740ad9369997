"""How far a difference between two methods can be trusted.

Both methods read the same documents, so the documents are paired, and so are the runs with the same seed. Two things
could have come out otherwise: which documents there are, and which seeds. The documents are resampled (bootstrap).
Resampling a few gives an interval that is too narrow, by a half with three of them, so what is drawn spreads about the
mean as Student's t does about a normal distribution of estimated width. The seeds are few, and the mean over them
varies as Student's t says. With one seed the interval is about the documents alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
REPLICATES = 2000
_SEED_DRAWS = 100
"""Of the mean over seeds, for each drawing of documents: Student's t has long tails, whose ends take many to find."""
_SEED = 0
_BLOCK = 2**20
"""Documents drawn at a time, in all replicates together."""


class Interval(NamedTuple):
    """A mean, and where the true one lies in `CONFIDENCE` of all cases."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the mean is supported."""
        return self.low > 0 or self.high < 0

    def within(self, low: float, high: float) -> "Interval":
        """The same, of a figure that cannot be outside: what Student's t gives beyond is cut off."""
        return Interval(self.mean, max(self.low, low), min(self.high, high))


def paired_difference(
    values: NDArray[np.float64], others: NDArray[np.float64], weights: NDArray[np.float64]
) -> Interval | None:
    """The weighted mean of `values` less that of `others`, such as the difference in loss a token.

    Args:
        values, others: sums over each document (nats, answers right), for each seed: [seeds, documents].
        weights: how much each document counts: its tokens, or 1: [documents].

    Returns:
        None for a single document, which says nothing of others.
    """
    if values.shape[1] == 1:
        return None
    differences = values - others
    by_seed = differences.sum(1) / weights.sum()
    generator = np.random.default_rng(_SEED)
    return _interval(by_seed, _resampled_means(differences.mean(0), weights, generator), generator)


def mean_over_seeds(values: Sequence[float]) -> Interval | None:
    """The mean of a figure that each seed has one of; None for a single seed, which says nothing of others."""
    if len(values) == 1:
        return None
    by_seed = np.array(values)
    return _interval(by_seed, np.full(REPLICATES, by_seed.mean()), np.random.default_rng(_SEED))


def _interval(by_seed: NDArray[np.float64], draws: NDArray[np.float64], generator: np.random.Generator) -> Interval:
    """Of the mean of `by_seed`, where `draws` are what it could have been with these seeds: [REPLICATES]."""
    if len(by_seed) > 1:
        scale = by_seed.std(ddof=1) / math.sqrt(len(by_seed))
        draws = np.repeat(draws, _SEED_DRAWS)
        draws += scale * generator.standard_t(len(by_seed) - 1, size=draws.size)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(by_seed.mean()), float(low), float(high))


def _resampled_means(
    sums: NDArray[np.float64], weights: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """`sums` over `weights` of as many documents, drawn with replacement, with the tails of few: [REPLICATES]."""
    documents = len(sums)
    block = max(1, _BLOCK // documents)
    means = []
    for start in range(0, REPLICATES, block):
        drawn = generator.integers(documents, size=(min(block, REPLICATES - start), documents))
        means.append(sums[drawn].sum(1) / weights[drawn].sum(1))
    mean = sums.sum() / weights.sum()
    tails = np.sqrt(documents / generator.chisquare(documents - 1, size=REPLICATES))
    return np.asarray(mean + (np.concatenate(means) - mean) * tails)
