"""Summary statistics of the training split's labels."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cocomix.attribution.labels import Labels


@dataclass(frozen=True)
class LabelsSummary:
    """Counts and shares of the training split's labels."""

    positions: int
    full_share: float
    """Share of the positions with a next token that have all k_attr labels."""
    unlabelled_share: float
    """Share of them that have no label."""
    label_entropy: float
    """Entropy of the distribution of labels over concepts, in bits."""
    distinct_concepts: int
    """Concepts that are a label anywhere."""
    most_frequent: int
    most_frequent_share: float
    """The concept that is most often a label, and its share of the labels."""


def summarise(files: Iterable[Labels], latents: int) -> LabelsSummary:
    """Summarise labels, which arrive part by part."""
    counts = np.zeros(latents, dtype=np.int64)
    positions = full = labelled = 0
    for concepts, _scores in files:
        given = concepts < latents
        counts += np.bincount(concepts[given], minlength=latents)
        full += int(given[:, :, -1].sum())
        labelled += int(given[:, :, 0].sum())
        positions += len(concepts) * (concepts.shape[1] - 1)
    shares = counts[counts > 0] / max(1, counts.sum())
    return LabelsSummary(
        positions=positions,
        full_share=full / positions,
        unlabelled_share=1 - labelled / positions,
        label_entropy=float(-(shares * np.log2(shares)).sum()),
        distinct_concepts=len(shares),
        most_frequent=int(counts.argmax()),
        most_frequent_share=float(shares.max(initial=0.0)),
    )
