"""Token windows as batches of tensors, with what a teacher says at their positions."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, Required, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cocomix.plumbing.mapped import read_at_random

SMALLEST_SCORE = 2.0**-24
"""The smallest positive fp16 number."""
NO_LABEL = -1
"""In place of a concept's id: a position has fewer labels than others."""


class Drawn(NamedTuple):
    """The base model's sampled distribution of the next token, at some positions."""

    ids: Tensor
    """Tokens that were drawn, each once, int64 [..., most], padded with -1."""
    shares: Tensor
    """Share of each token in the draws, float32 [..., most]; 0 where there is no token."""
    entropies: Tensor
    """Entropy in nats of the distribution that was sampled, float32 [...]."""


class Batch(TypedDict, total=False):
    """The columns of a batch: those that an objective needs, which takes them by name."""

    windows: Required[Tensor]
    """Token ids, int64 [batch, context]."""
    labels: Tensor
    """Concepts of each position, int64 [batch, context, labels], negative: no label."""
    label_weights: Tensor
    """Weights of a position's labels, which sum to 1, float32 [batch, context, labels]; left out: equal."""
    forced_rows: Tensor
    """Windows whose labels are mixed in first, bool [batch]; left out: none."""
    drawn: Drawn
    """Of [batch, context] positions."""


class DrawsByWindow(Protocol):
    """The sampled distributions of all windows of a split."""

    def batch(self, rows: NDArray[np.int64] | slice) -> Drawn:
        """Those of some windows: of [batch, context] positions."""

    def read_at_random(self) -> None:
        """Prepare for batches of windows in random order."""


@dataclass(frozen=True)
class WindowLabels:
    """Concept labels of all windows of a split, as a model learns them."""

    concepts: NDArray[np.unsignedinteger]
    """[windows, context, k_attr]; the dtype's largest value: no label."""
    scores: NDArray[np.float16] | None = None
    """Attribution scores of the labels, [windows, context, k_attr]; None: all labels of a position weigh the same."""
    offsets: tuple[int, ...] = (0,)
    """Whose labels a position has: its own (0), those of the next position (1), ..., side by side."""
    order: NDArray[np.int64] | None = None
    """The window whose labels each window has, [windows]; None: its own."""

    def batch(self, rows: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor | None]:
        """The columns `labels` and `label_weights` of a batch, the latter None without scores."""
        if self.order is not None:
            rows = self.order[rows]
        found = self.concepts[rows]
        concepts = torch.from_numpy(np.where(found == np.iinfo(found.dtype).max, NO_LABEL, found.astype(np.int64)))
        labels = self._side_by_side(concepts, NO_LABEL)
        if self.scores is None:
            return labels, None
        # At least the smallest number that divides: a label may have the score 0.
        scores = torch.from_numpy(self.scores[rows].astype(np.float32)).abs().clamp(min=SMALLEST_SCORE)
        weights = self._side_by_side(scores.masked_fill(concepts < 0, 0), 0)
        return labels, weights / weights.sum(-1, keepdim=True).clamp(min=SMALLEST_SCORE)

    @property
    def per_position(self) -> int:
        """Labels of a position at most."""
        return self.concepts.shape[2] * len(self.offsets)

    def _side_by_side(self, each: Tensor, none: int) -> Tensor:
        """Those of the positions at each offset, [batch, context, k_attr x offsets]; `none` after the window's end."""
        return torch.cat([F.pad(each[:, by:], (0, 0, 0, by), value=none) for by in self.offsets], dim=-1)


@dataclass(frozen=True)
class WindowData:
    """Token windows, with the concept labels and the sampled distributions of their positions where a method uses
    them."""

    windows: NDArray[np.unsignedinteger]
    """[windows, context]."""
    labels: WindowLabels | None = None
    draws: DrawsByWindow | None = None

    def batch(self, rows: NDArray[np.int64] | slice) -> Batch:
        """The columns of some windows, on the CPU."""
        batch = Batch(windows=torch.from_numpy(self.windows[rows].astype(np.int64)))
        if self.labels is not None:
            batch["labels"], weights = self.labels.batch(rows)
            if weights is not None:
                batch["label_weights"] = weights
        if self.draws is not None:
            batch["drawn"] = self.draws.batch(rows)
        return batch

    def read_at_random(self) -> None:
        """Prepare for batches of windows in random order: see `cocomix.plumbing.mapped`."""
        read_at_random(self.windows)
        if self.labels is not None:
            read_at_random(self.labels.concepts)
            if self.labels.scores is not None:
                read_at_random(self.labels.scores)
        if self.draws is not None:
            self.draws.read_at_random()
