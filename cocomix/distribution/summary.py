"""Summary statistics of the training split's draws."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cocomix.distribution.draws import PackedDraws


@dataclass(frozen=True)
class DrawsSummary:
    """Means over the training split's positions that have a next token."""

    positions: int
    mean_unique: float
    """Different tokens drawn at a position."""
    mean_entropy: float
    """Entropy of the whole distribution, in nats."""
    bytes_per_token: float
    """On disk, of all tokens."""


def summarise(files: Iterable[PackedDraws], size: int) -> DrawsSummary:
    """Summarise draws, which arrive part by part.

    Args:
        size: bytes of the files.
    """
    tokens = positions = unique = 0
    entropy = 0.0
    for part in files:
        tokens += part.unique.size
        positions += len(part.unique) * (part.unique.shape[1] - 1)
        unique += int(part.unique.sum(dtype=np.int64))
        entropy += float(part.entropies.sum(dtype=np.float64))
    return DrawsSummary(positions, unique / positions, entropy / positions, size / tokens)
