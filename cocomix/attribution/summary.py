"""Summary statistics of the training split's labels."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cocomix.attribution.labels import Labels


class Frequencies(NamedTuple):
    """How often each concept is a label, in a few numbers."""

    entropy: float
    """Entropy of the distribution of labels over concepts, in bits."""
    distinct: int
    """Concepts that are a label anywhere."""
    most_frequent: int
    most_frequent_share: float
    """The concept that is most often a label, and its share of the labels."""


def frequencies(counts: NDArray[np.integer]) -> Frequencies:
    """Summarise how many labels each concept has, [concepts]."""
    shares = counts[counts > 0] / max(1, counts.sum())
    entropy = float(-(shares * np.log2(shares)).sum())
    return Frequencies(entropy, len(shares), int(counts.argmax()), float(shares.max(initial=0.0)))


@dataclass(frozen=True)
class LabelsSummary:
    """Counts and shares of the training split's labels."""

    positions: int
    full_share: float
    """Share of the positions with a next token that have all k_attr labels."""
    unlabelled_share: float
    """Share of them that have no label."""
    label_entropy: float
    distinct_concepts: int
    most_frequent: int
    most_frequent_share: float


def summarise(files: Iterable[Labels], number: int) -> LabelsSummary:
    """Summarise labels, which arrive part by part.

    Args:
        number: of concepts.
    """
    counts = np.zeros(number, dtype=np.int64)
    positions = full = labelled = 0
    for concepts, _scores in files:
        given = concepts < number
        counts += np.bincount(concepts[given], minlength=number)
        full += int(given[:, :, -1].sum())
        labelled += int(given[:, :, 0].sum())
        positions += len(concepts) * (concepts.shape[1] - 1)
    found = frequencies(counts)
    return LabelsSummary(
        positions=positions,
        full_share=full / positions,
        unlabelled_share=1 - labelled / positions,
        label_entropy=found.entropy,
        distinct_concepts=found.distinct,
        most_frequent=found.most_frequent,
        most_frequent_share=found.most_frequent_share,
    )
