"""Confidence intervals of differences between two methods.

Both methods read the same documents, so documents are paired, and so are runs with the same seed. Two sources of
variation count: the documents and the seeds. The documents are resampled (bootstrap). The bootstrap of few documents
gives intervals that are too narrow, by a half with three documents, so the deviations of the resampled means from the
mean are scaled as Student's t widens a normal distribution. The seeds are few, and the mean over them varies by
Student's t. With one seed, the interval covers the documents alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
REPLICATES = 2000
_SEED_DRAWS = 100
"""Draws of the mean over seeds per bootstrap replicate: the heavy tails of Student's t need many draws."""
_SEED = 0
_BLOCK = 2**20
"""Documents drawn at a time, over all replicates."""


class Interval(NamedTuple):
    """A mean, and its confidence interval of level `CONFIDENCE`."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval supports the sign of the mean."""
        return self.low > 0 or self.high < 0

    def within(self, low: float, high: float) -> "Interval":
        """The interval clipped to the range of possible values, which Student's t may exceed."""
        return Interval(self.mean, max(self.low, low), min(self.high, high))


def paired_difference(
    values: NDArray[np.float64], others: NDArray[np.float64], weights: NDArray[np.float64]
) -> Interval | None:
    """The weighted mean of `values` minus that of `others`, such as the difference in loss per token.

    Args:
        values, others: sums over each document (nats, correct answers), for each seed: [seeds, documents].
        weights: weight of each document, its number of tokens or 1: [documents].

    Returns:
        None for a single document, from which no variation can be estimated.
    """
    if values.shape[1] == 1:
        return None
    differences = values - others
    by_seed = differences.sum(1) / weights.sum()
    generator = np.random.default_rng(_SEED)
    return _interval(by_seed, _resampled_means(differences.mean(0), weights, generator), generator)


def mean_over_seeds(values: Sequence[float]) -> Interval | None:
    """The mean of one value per seed; None for a single seed, from which no variation can be estimated."""
    if len(values) == 1:
        return None
    by_seed = np.array(values)
    return _interval(by_seed, np.full(REPLICATES, by_seed.mean()), np.random.default_rng(_SEED))


def _interval(by_seed: NDArray[np.float64], draws: NDArray[np.float64], generator: np.random.Generator) -> Interval:
    """The interval of the mean of `by_seed`; `draws` are its bootstrap means with these seeds: [REPLICATES]."""
    if len(by_seed) > 1:
        scale = by_seed.std(ddof=1) / math.sqrt(len(by_seed))
        draws = np.repeat(draws, _SEED_DRAWS)
        draws += scale * generator.standard_t(len(by_seed) - 1, size=draws.size)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(by_seed.mean()), float(low), float(high))


def _resampled_means(
    sums: NDArray[np.float64], weights: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Bootstrap means over documents, `sums` over `weights`, with the tails of Student's t: [REPLICATES]."""
    documents = len(sums)
    block = max(1, _BLOCK // documents)
    means = []
    for start in range(0, REPLICATES, block):
        drawn = generator.integers(documents, size=(min(block, REPLICATES - start), documents))
        means.append(sums[drawn].sum(1) / weights[drawn].sum(1))
    mean = sums.sum() / weights.sum()
    tails = np.sqrt(documents / generator.chisquare(documents - 1, size=REPLICATES))
    return np.asarray(mean + (np.concatenate(means) - mean) * tails)
