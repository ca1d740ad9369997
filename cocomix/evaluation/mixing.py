"""The effect of mixing on a model's loss: with the mixed vectors ablated, and with the concepts replaced by labels.

- Information gain of mixing: the loss with the mixed vectors set to zero, to those of another window, or to their mean,
  compared with the unchanged loss.
- Intervenability: the loss when some of the labels are supplied, one after the other. They become the position's first
  concepts, and the last ones drop out; the strengths, first to last, stay the same. The effect depends on what labels
  are: with `attribution.sign: released`, they are concepts without which the base model would predict the next token
  better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cocomix.base.hooks import residual_at
from cocomix.evaluation.language_model import shares, token_losses, windows_at_once
from cocomix.modeling import CoCoMixLanguageModel, Concepts, Edit
from cocomix.modeling.concept_edits import put_first
from cocomix.models.replacement import vectors_replaced
from cocomix.plumbing.device import device, send
from cocomix.plumbing.distributed import totals
from cocomix.plumbing.parts import Summing
from cocomix.plumbing.progress import progress
from cocomix.tokens.spaced import spaced
from cocomix.tokens.window_data import NO_LABEL, WindowData


@dataclass(frozen=True)
class MixingScore:
    """Losses on a sample of windows, in nats per token."""

    windows: int
    as_it_is: float
    zeroed: float
    """With the mixed vectors set to 0."""
    shuffled: float
    """With the mixed vectors of another window at the same positions."""
    mean: float
    """With the mixed vectors' mean over all positions."""
    fed_by_uncertainty: list[float]
    """With 0, 1, .. of each position's labels supplied, those with the lowest predicted logit first."""
    fed_at_random: list[float]
    """The same in random order."""
    fed_others: float
    """With as many labels supplied, but those of another window at the same positions."""


@dataclass(frozen=True)
class PutLabelsFirst:
    """A concept edit that puts labels first and keeps the strengths of the first, second, .. concept."""

    labels: Tensor
    """int64 [batch, seq, m], `NO_LABEL` where there is none."""
    count: int
    """Number of labels to put first, from 0 to m."""
    turn: Tensor | None = None
    """Sort key of the labels, smallest first: [batch, seq, m]; None: the label's predicted logit."""

    def __call__(self, concepts: Concepts) -> Concepts:
        """Apply the edit."""
        strengths, order = concepts.strengths.sort(-1, descending=True)
        indices = concepts.indices.gather(-1, order)
        certainty = concepts.logits.gather(-1, self.labels.clamp(min=0))
        turn = (certainty if self.turn is None else self.turn).masked_fill(self.labels == NO_LABEL, float("inf"))
        chosen = turn.argsort(-1)[..., : self.count]
        first, certainty = self.labels.gather(-1, chosen), certainty.gather(-1, chosen)
        first = first.gather(-1, certainty.argsort(-1, descending=True))
        return concepts._replace(strengths=strengths, indices=put_first(indices, first))


class _Windows(NamedTuple):
    """A batch of windows with replacements for their labels and mixed vectors."""

    ids: Tensor
    """int64 [batch, context]."""
    labels: Tensor
    """int64 [batch, context, m]."""
    turn: Tensor
    """Random numbers: [batch, context, m]."""
    other_vectors: Tensor
    """Mixed vectors of other windows: [batch, context, d_model]."""
    other_labels: Tensor
    """Labels of other windows: int64 [batch, context, m]."""


@torch.no_grad()
def score_mixing(
    model: CoCoMixLanguageModel, data: WindowData, windows: int, batch_size: int, task: str, kept: Path | None = None
) -> MixingScore:
    """Score the effect of mixing on the loss of `model`, on about `windows` windows evenly spaced in `data`.

    `windows` and the windows of `data` must be at least 2, since each window is paired with another.

    Args:
        batch_size: maximum windows per forward pass; see `windows_at_once`.
        task: description for the progress bar.
        kept: see `Summing`.
    """
    model.eval().to(device())
    assert data.labels is not None
    (count, context), m = data.windows.shape, data.labels.per_position
    sample = spaced(count, windows)
    turns = np.random.default_rng(0).random((len(sample), context, m), dtype=np.float32)
    mine = shares(len(sample), windows_at_once(batch_size, context, model.config))
    total = torch.zeros(model.config.hidden_size, dtype=torch.float64)
    for rows in Summing(kept and kept.with_name(f"{kept.name}-mean"), mine, total.numpy()):
        total += _mixed_vectors(model, data, sample[rows]).sum((0, 1)).cpu()
    mean = torch.tensor(totals(*total.tolist()), dtype=torch.float32, device=device()) / (len(sample) * context)
    sums = np.zeros(4 + 2 * m)
    summing = Summing(kept, mine, sums)
    with progress(task, sum(map(len, mine)), "windows", sum(map(len, summing.done))) as bar:
        for rows in summing:
            others = sample[rows - len(sample) // 2]  # far away: the next window may hold the same document
            batch = data.batch(sample[rows])
            ids, labels, other_labels = map(send, (batch["windows"], batch["labels"], data.batch(others)["labels"]))
            turn = send(torch.from_numpy(turns[rows]))
            some = _Windows(ids, labels, turn, _mixed_vectors(model, data, others), other_labels)
            sums += _losses(model, some, mean)
            bar.advance(len(rows))
    losses = [total / (len(sample) * (context - 1)) for total in totals(*sums.tolist())]
    as_it_is, zeroed, shuffled, averaged, all_fed, fed_others = losses[:6]
    some_fed = [losses[6 : 5 + m], losses[5 + m :]]
    by_uncertainty, at_random = ([as_it_is, *each, all_fed] for each in some_fed)
    return MixingScore(len(sample), as_it_is, zeroed, shuffled, averaged, by_uncertainty, at_random, fed_others)


def _losses(model: CoCoMixLanguageModel, some: _Windows, mean: Tensor) -> list[float]:
    """Summed losses: unchanged, zeroed, shuffled, mean; with all labels, others' labels, 1 to m - 1 in both orders."""
    m = some.labels.shape[-1]

    def loss(*edits: Edit) -> float:
        return float(token_losses(model, some.ids, concept_edits=edits).cpu().double().sum())

    def loss_with(change: Callable[[Tensor], Tensor]) -> float:
        with vectors_replaced(model, change):
            return loss()

    return [
        loss(),
        loss_with(torch.zeros_like),
        loss_with(lambda _: some.other_vectors),
        loss_with(mean.expand_as),
        loss(PutLabelsFirst(some.labels, m)),
        loss(PutLabelsFirst(some.other_labels, m)),
        *(loss(PutLabelsFirst(some.labels, count)) for count in range(1, m)),
        *(loss(PutLabelsFirst(some.labels, count, some.turn)) for count in range(1, m)),
    ]


def _mixed_vectors(model: CoCoMixLanguageModel, data: WindowData, rows: NDArray[np.int64]) -> Tensor:
    """The vectors that `model` mixes in these windows: [batch, context, d_model]."""
    ids = send(data.batch(rows)["windows"])
    vector: Tensor = model.base_model.mixer(residual_at(model, ids, model.config.concept_layer)).vector
    return vector
