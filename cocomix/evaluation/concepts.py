"""Evaluate a model's concept predictions, overall and per concept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cocomix.base.hooks import residual_at
from cocomix.evaluation.language_model import shares, windows_at_once
from cocomix.modeling import CoCoMixLanguageModel
from cocomix.plumbing.device import device, send
from cocomix.plumbing.distributed import totals
from cocomix.plumbing.parts import Summing
from cocomix.plumbing.progress import progress
from cocomix.tokens.window_data import NO_LABEL, WindowData
from cocomix.training.losses import concept_loss, labelled_positions

IGNORED = 1 / 64
"""A concept is ignored when the norm of its compress column is below this share of the mean norm. The paper's threshold
(Fig. 6c: 0.01) is 1/64 of its columns' norm at initialisation, 0.02 sqrt(1024); ours have other initial norms."""


@dataclass(frozen=True)
class ConceptScore:
    """Concept predictions compared with the labels."""

    cross_entropy: float
    """Concept loss in nats per labelled position (paper Eq. 2)."""
    recall_at_k: float
    """Share of the labels that are among the `concept_k` mixed concepts (recall@k)."""
    recall_at_labels: float
    """Share of the labels that are among the top k_attr predictions; k_attr: maximum labels per position."""
    never_predicted: float
    """Share of the dictionary that is mixed at no position."""
    ignored: float | None
    """Share of the dictionary that is ignored when mixed, see `IGNORED`; None: the model mixes nothing."""


@dataclass(frozen=True)
class ConceptTable:
    """Columns with one entry per concept."""

    predicted: list[int]
    """Number of positions where it is among the `concept_k` predicted concepts."""
    labelled: list[int]
    """Number of positions where it is a label."""
    right: list[int]
    """Number of positions where it is both."""
    mean_strength: list[float | None]
    """Mean logit over the positions where it is predicted."""
    compress_norm: list[float | None]
    """Norm of its column of the compress matrix, which its strength multiplies; None: the model mixes nothing."""


@dataclass(frozen=True)
class ConceptScores:
    """Results of `score_concepts`."""

    whole: ConceptScore
    each: ConceptTable


@torch.no_grad()
def score_concepts(
    model: CoCoMixLanguageModel, data: WindowData, batch_size: int, task: str, kept: Path | None = None
) -> ConceptScores:
    """Score the concept predictions of `model` against the labels of `data`; blocks above the mixer are not computed.

    Args:
        batch_size: maximum windows per forward pass; see `windows_at_once`.
        task: description for the progress bar.
        kept: see `Summing`.
    """
    model.eval().to(device())
    config = model.config
    k, concepts, (windows, context) = config.concept_k, config.num_concepts, data.windows.shape
    whole = np.zeros(3)  # loss, labelled positions, labels found
    counts = torch.zeros(4, concepts, dtype=torch.float64)  # on the CPU: some devices have no float64
    mine = shares(windows, windows_at_once(batch_size, context, config))
    summing = Summing(kept, mine, whole, counts.numpy())
    with progress(task, sum(map(len, mine)) * context, "tokens", sum(map(len, summing.done)) * context) as bar:
        for rows in summing:
            batch = data.batch(rows)
            ids, wanted = send(batch["windows"]), send(batch["labels"])
            logits = model.base_model.mixer(residual_at(model, ids, config.concept_layer)).concept_logits
            loss_here, labelled_here = float(concept_loss(logits, wanted)), int(labelled_positions(wanted))
            top = logits.topk(max(k, wanted.shape[-1]))
            strengths, indices, wanted = top.values.cpu(), top.indices.cpu(), wanted.cpu()
            whole += loss_here, labelled_here, int(_are_in(indices[..., : wanted.shape[-1]], wanted).sum())
            strengths, indices = strengths[..., :k], indices[..., :k]
            counts[0] += _count(indices, concepts)
            counts[1] += _count(wanted[wanted != NO_LABEL], concepts)
            counts[2] += _count(indices[_are_in(indices, wanted)], concepts)
            counts[3].index_add_(0, indices.flatten(), strengths.flatten().double())
            bar.advance(ids.numel())
    loss, positions, found, *columns = totals(*whole.tolist(), *counts.flatten().tolist())
    predicted, labelled, right, strength = np.array(columns).reshape(4, concepts)
    norms = _compress_norms(model) if config.mixing != "none" else None
    score = ConceptScore(
        cross_entropy=loss / max(positions, 1),
        recall_at_k=float(right.sum() / max(labelled.sum(), 1)),
        recall_at_labels=found / max(labelled.sum(), 1),
        never_predicted=float((predicted == 0).mean()),
        ignored=None if norms is None else float((norms < IGNORED * norms.mean()).mean()),
    )
    each = ConceptTable(
        predicted=predicted.astype(int).tolist(),
        labelled=labelled.astype(int).tolist(),
        right=right.astype(int).tolist(),
        mean_strength=[
            total / count if count else None for total, count in zip(strength.tolist(), predicted.tolist(), strict=True)
        ],
        compress_norm=[None] * concepts if norms is None else norms.tolist(),
    )
    return ConceptScores(score, each)


def _compress_norms(model: CoCoMixLanguageModel) -> NDArray[np.float32]:
    weight: Tensor = model.base_model.mixer.compress.weight
    return weight.norm(dim=1).cpu().numpy()


def _are_in(some: Tensor, others: Tensor) -> Tensor:
    """Whether each of the concepts [..., m] is among the others [..., n] of the same position: bool [..., m]."""
    return (some[..., :, None] == others[..., None, :]).any(-1)


def _count(concepts: Tensor, minlength: int) -> Tensor:
    return torch.bincount(concepts.flatten(), minlength=minlength)
