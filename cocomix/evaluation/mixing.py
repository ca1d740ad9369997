"""What mixing does for a model: its loss when what is mixed is taken away, or replaced by the labels.

- Information gain of mixing: the loss as it is, against that with the mixed vector replaced by nothing, by another
  text's, or by its mean.
- Intervenability: the loss when the model is told its labels, one by one. Labels that are told become the first of the
  position's concepts, and the last drop out; the strengths, first to last, stay as they were. What that does to the
  loss depends on what labels are: with `attribution.sign: released`, concepts without which the base model would
  predict the next token better.
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
from cocomix.modeling import CoCoMixForCausalLM, Concepts, Edit
from cocomix.models.replacement import vectors_replaced
from cocomix.plumbing.device import device, send
from cocomix.plumbing.distributed import totals
from cocomix.plumbing.parts import Summing
from cocomix.plumbing.progress import progress
from cocomix.tokens.window_data import WindowData
from cocomix.training.losses import NO_LABEL


@dataclass(frozen=True)
class MixingScore:
    """Losses on some windows, nats a token."""

    windows: int
    as_it_is: float
    zeroed: float
    """With the mixed vectors 0."""
    shuffled: float
    """With those of another window, each at the same place in it."""
    mean: float
    """With their mean over all positions."""
    told_by_uncertainty: list[float]
    """Told 0, 1, .. of the labels of each position: those first of which the model is least certain."""
    told_at_random: list[float]
    """The same, in random order."""
    told_others: float
    """Told as many labels, but those of another window, each at the same place in it."""


@dataclass(frozen=True)
class PutLabelsFirst:
    """An edit of concepts that makes labels the first of them, and keeps the strengths of first, second, .. concept."""

    labels: Tensor
    """int64 [batch, seq, m], `NO_LABEL` where there is none."""
    count: int
    """How many labels, from 0 to m."""
    turn: Tensor | None = None
    """When the turn of each label comes, the smallest first: [batch, seq, m]; none: when the model is least certain."""

    def __call__(self, concepts: Concepts) -> Concepts:
        """Edit."""
        strengths, order = concepts.strengths.sort(-1, descending=True)
        indices = concepts.indices.gather(-1, order)
        certainty = concepts.logits.gather(-1, self.labels.clamp(min=0))
        turn = (certainty if self.turn is None else self.turn).masked_fill(self.labels == NO_LABEL, float("inf"))
        chosen = turn.argsort(-1)[..., : self.count]
        put_first, certainty = self.labels.gather(-1, chosen), certainty.gather(-1, chosen)
        put_first = put_first.gather(-1, certainty.argsort(-1, descending=True))
        others_stay = ~(indices[..., :, None] == put_first[..., None, :]).any(-1)
        ranking = torch.cat([put_first, indices], dim=-1)
        is_in = torch.cat([put_first != NO_LABEL, others_stay], dim=-1)
        first = is_in.int().argsort(dim=-1, descending=True, stable=True)[..., : indices.shape[-1]]
        return concepts._replace(strengths=strengths, indices=ranking.gather(-1, first))


class _Windows(NamedTuple):
    """Some windows of the sample, and what replaces things of them."""

    ids: Tensor
    """int64 [batch, context]."""
    labels: Tensor
    """int64 [batch, context, m]."""
    turn: Tensor
    """Random numbers: [batch, context, m]."""
    other_vectors: Tensor
    """What is mixed in other windows: [batch, context, d_model]."""
    other_labels: Tensor
    """int64 [batch, context, m]."""


@torch.no_grad()
def score_mixing(
    model: CoCoMixForCausalLM, data: WindowData, windows: int, batch_size: int, task: str, kept: Path | None = None
) -> MixingScore:
    """Score what the concepts that `model` mixes do for it, on about `windows` windows from all over `data`.

    Both are at least 2: each window is given what another mixes.

    Args:
        batch_size: windows in a forward pass at most; see `windows_at_once`.
        task: for the progress.
        kept: see `Summing`.
    """
    model.eval().to(device())
    assert data.labels is not None
    count, context, m = data.labels.shape
    sample = np.unique(np.linspace(0, count - 1, windows).astype(np.int64))
    turns = np.random.default_rng(0).random((len(sample), context, m), dtype=np.float32)
    mine = shares(len(sample), windows_at_once(batch_size, context, model.config))
    total = torch.zeros(model.config.n_embd, dtype=torch.float64)
    for rows in Summing(kept and kept.with_name(f"{kept.name}-mean"), mine, total.numpy()):
        total += _mixed_vectors(model, data, sample[rows]).sum((0, 1)).cpu()
    mean = torch.tensor(totals(*total.tolist()), dtype=torch.float32, device=device()) / (len(sample) * context)
    sums = np.zeros(4 + 2 * m)
    summing = Summing(kept, mine, sums)
    with progress(task, sum(map(len, mine)), "windows", sum(map(len, summing.done))) as bar:
        for rows in summing:
            others = sample[rows - len(sample) // 2]  # far away: the next one may hold the same document
            ids, labels = map(send, data.batch(sample[rows]))
            other_labels = send(data.batch(others)[1])
            turn = send(torch.from_numpy(turns[rows]))
            some = _Windows(ids, labels, turn, _mixed_vectors(model, data, others), other_labels)
            sums += _losses(model, some, mean)
            bar.advance(len(rows))
    losses = [total / (len(sample) * (context - 1)) for total in totals(*sums.tolist())]
    as_it_is, zeroed, shuffled, averaged, all_told, told_others = losses[:6]
    some_told = [losses[6 : 5 + m], losses[5 + m :]]
    by_uncertainty, at_random = ([as_it_is, *each, all_told] for each in some_told)
    return MixingScore(len(sample), as_it_is, zeroed, shuffled, averaged, by_uncertainty, at_random, told_others)


def _losses(model: CoCoMixForCausalLM, some: _Windows, mean: Tensor) -> list[float]:
    """Summed losses: as it is, zeroed, shuffled, mean, all told, others told, 1 to m - 1 told in either order."""
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


def _mixed_vectors(model: CoCoMixForCausalLM, data: WindowData, rows: NDArray[np.int64]) -> Tensor:
    """What `model` mixes in some windows: [batch, context, d_model]."""
    ids = send(data.batch(rows)[0])
    vector: Tensor = model.transformer.mixer(residual_at(model, ids, model.config.concept_layer)).vector
    return vector
