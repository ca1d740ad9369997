"""How well a model predicts text, and how well it predicts the concepts of text."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.device import device
from cocomix.distributed import totals
from cocomix.modeling import CoCoMixForCausalLM
from cocomix.progress import progress
from cocomix.runtime import runtime
from cocomix.training import WindowData
from cocomix.training.losses import NO_LABEL, concept_loss, labelled_positions, next_token_loss


@dataclass(frozen=True)
class LanguageModelScore:
    """Prediction of text, in fp32, over whole windows (each token but a window's first is predicted)."""

    loss: float
    """Cross-entropy, nats a token."""
    perplexity: float
    bits_per_byte: float
    """Cross-entropy in bits over the UTF-8 bytes that a token stands for: comparable between tokenizers."""


@dataclass(frozen=True)
class ConceptScore:
    """Prediction of concepts against their labels."""

    cross_entropy: float
    """Concept loss, nats a labelled position (paper Eq. 2)."""
    recall_at_k: float
    """Share of the labels that are among the `concept_k` mixed concepts."""
    recall_at_labels: float
    """Share of the labels that are among as many predictions as a position has labels at most (k_attr)."""
    never_predicted: float
    """Share of the dictionary that no position mixed."""


@torch.no_grad()
def score_language_model(
    model: PreTrainedModel, windows: NDArray[np.unsignedinteger], bytes_per_token: float, batch_size: int, task: str
) -> LanguageModelScore:
    """Score `model` on windows of token ids [windows, context]."""
    total = 0.0
    for batch in _batches(model, WindowData(windows), batch_size, task):
        total += float(next_token_loss(model(batch[0], use_cache=False).logits, batch[0]))
    (total,) = totals(total)
    loss = total / (windows.shape[0] * (windows.shape[1] - 1))
    return LanguageModelScore(loss=loss, perplexity=math.exp(loss), bits_per_byte=loss / math.log(2) / bytes_per_token)


@torch.no_grad()
def score_concepts(model: CoCoMixForCausalLM, data: WindowData, batch_size: int, task: str) -> ConceptScore:
    """Score the concept predictions of `model` against the labels of `data`."""
    config = model.config
    loss, positions, labels, found_k, found_labels = 0.0, 0.0, 0.0, 0.0, 0.0
    predicted = torch.zeros(config.num_concepts, dtype=torch.bool, device=device())
    for windows, wanted in _batches(model, data, batch_size, task):
        logits = model.transformer(windows, use_cache=False).concept_logits
        loss += float(concept_loss(logits, wanted))
        positions += int(labelled_positions(wanted))
        labels += int((wanted != NO_LABEL).sum())
        top = logits.topk(max(config.concept_k, wanted.shape[-1])).indices
        predicted[top[..., : config.concept_k].flatten()] = True
        found_k += _found(wanted, top[..., : config.concept_k])
        found_labels += _found(wanted, top[..., : wanted.shape[-1]])
    loss, *counts = totals(loss, positions, labels, found_k, found_labels, *predicted.double().tolist())
    positions, labels, found_k, found_labels, *by_process = counts
    return ConceptScore(
        cross_entropy=loss / max(positions, 1),
        recall_at_k=found_k / max(labels, 1),
        recall_at_labels=found_labels / max(labels, 1),
        never_predicted=by_process.count(0.0) / config.num_concepts,
    )


def _found(wanted: Tensor, predicted: Tensor) -> int:
    """How many of the labels are predicted; the label `NO_LABEL` never is."""
    return int((wanted[..., :, None] == predicted[..., None, :]).any(-1).sum())


def _batches(model: PreTrainedModel, data: WindowData, batch_size: int, task: str) -> Iterator[tuple[Tensor, ...]]:
    """This process's share of the windows, a batch at a time."""
    model.eval().to(device())
    starts = range(0, len(data.windows), batch_size)[runtime().rank :: runtime().world_size]
    with progress(task, len(starts) * batch_size * data.windows.shape[1], "tokens") as bar:
        for start in starts:
            batch = data.batch(slice(start, start + batch_size))
            yield batch
            bar.advance(batch[0].numel())
