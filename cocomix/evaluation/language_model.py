"""Evaluate language modelling, overall and per document."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from cocomix.evaluation.text import EvaluationText
from cocomix.plumbing.device import device, most_logits, send
from cocomix.plumbing.distributed import from_first, totals
from cocomix.plumbing.parts import Summing
from cocomix.plumbing.progress import progress
from cocomix.plumbing.runtime import runtime


@dataclass(frozen=True)
class LanguageModelScore:
    """Language modelling scores over a text."""

    loss: float
    """Cross-entropy in nats per token."""
    perplexity: float
    bits_per_byte: float
    """Cross-entropy in bits per UTF-8 byte of the predicted tokens; comparable between tokenizers."""


@dataclass(frozen=True)
class DocumentLosses:
    """Loss of each document with predicted tokens: columns of equal length."""

    document: list[int]
    """Index in the text, from 0."""
    group: list[str]
    """See `cocomix.corpus.store.Document`."""
    tokens: list[int]
    """Number of its predicted tokens, EOS included."""
    bytes: list[float]
    """UTF-8 bytes of its predicted tokens."""
    loss: list[float]
    """Cross-entropy in nats, summed over its predicted tokens."""


@dataclass(frozen=True)
class TextScore:
    """Result of `score_text`."""

    whole: LanguageModelScore
    documents: DocumentLosses


class Spans(NamedTuple):
    """Windows over a text; both arrays are [windows]."""

    starts: NDArray[np.int64]
    """Index of the window's first token in the text."""
    seen: NDArray[np.int64]
    """Number of leading tokens that serve as context only, because an earlier window predicts them."""


def spans(tokens: int, context: int, stride: int | None) -> Spans:
    """Windows over a text of `tokens` tokens (at least `context`); the last window ends where the text ends.

    Args:
        stride: tokens from one window's start to the next, below `context`; None: `context`.
    """
    starts = np.append(np.arange(0, tokens - context, stride or context), tokens - context)
    return Spans(starts, np.append(0, starts[:-1] + context - starts[1:]))


@torch.no_grad()
def score_text(
    model: PreTrainedModel,
    text: EvaluationText,
    batch_size: int,
    task: str,
    stride: int | None = None,
    kept: Path | None = None,
) -> TextScore:
    """Score `model`, in its weights' dtype, on all tokens of `text` that have a token before them in a window.

    Args:
        batch_size: maximum windows per forward pass; see `windows_at_once`.
        task: description for the progress bar.
        stride: see `spans`.
        kept: see `Summing`.
    """
    model.eval().to(device())
    ids, context = text.windows.reshape(-1), text.windows.shape[1]
    starts, seen = spans(len(ids), context, stride)
    document = np.searchsorted(text.ends, np.arange(len(ids)), side="right")
    bytes_of = text.token_bytes[ids]
    bytes_of[text.ends[text.ends <= len(ids)] - 1] = text.end_bytes
    loss = np.zeros(document[-1] + 1)
    mine = shares(len(starts), windows_at_once(batch_size, context, model.config))
    summing = Summing(kept, mine, loss)
    with progress(task, sum(map(len, mine)) * context, "tokens", sum(map(len, summing.done)) * context) as bar:
        for rows in summing:
            places = starts[rows, None] + np.arange(context)
            losses = token_losses(model, send(torch.from_numpy(ids[places].astype(np.int64)))).cpu().double().numpy()
            is_new = np.arange(1, context) >= seen[rows, None]
            loss += np.bincount(document[places[:, 1:]][is_new], losses[is_new], minlength=len(loss))
            bar.advance(places.size)
    loss = np.array(totals(*loss))
    is_predicted = np.ones(len(ids), bool)
    is_predicted[starts[seen == 0]] = False
    document, bytes_of = document[is_predicted], bytes_of[is_predicted]
    predicted = np.bincount(document, minlength=len(loss))
    documents = np.flatnonzero(predicted)
    return TextScore(
        _whole(loss.sum(), len(document), bytes_of.sum()),
        DocumentLosses(
            documents.tolist(),
            [text.groups[each] for each in documents.tolist()],
            predicted[documents].tolist(),
            np.bincount(document, bytes_of, minlength=len(loss))[documents].tolist(),
            loss[documents].tolist(),
        ),
    )


def token_losses(model: PreTrainedModel, ids: Tensor, **inputs: Any) -> Tensor:
    """Cross-entropy of each token but the first, given the tokens before it, in nats: float [batch, seq - 1].

    Args:
        ids: int64 [batch, seq].
        inputs: further inputs of the model.
    """
    logits = model(input_ids=ids, use_cache=False, **inputs).logits
    # Slicing would copy the logits, so the loss covers all positions; the last one, whose target is wrong, is dropped.
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids.roll(-1, dims=1).flatten(), reduction="none")
    return losses.view_as(ids)[:, :-1]


def windows_at_once(batch_size: int, context: int, config: PretrainedConfig) -> int:
    """Windows per forward pass: at most `batch_size`, the micro-batch, and `most_logits` logits (at least one).

    The logits counted are those of tokens or of concepts, whichever are more.
    """
    classes = max(config.vocab_size, getattr(config, "num_concepts", 0))
    return max(1, min(runtime().at_most(batch_size), most_logits() // (context * classes)))


def shares(windows: int, at_once: int) -> list[NDArray[np.int64]]:
    """This process's share of the window indices, in batches of at most `at_once`; all processes must call this."""
    at_once = from_first(at_once)  # with another GPU each, the processes would have different batches
    batches = [np.arange(start, min(start + at_once, windows)) for start in range(0, windows, at_once)]
    return batches[runtime().rank :: runtime().world_size]


def _whole(loss: float, tokens: int, size: float) -> LanguageModelScore:
    mean = float(loss / tokens)
    return LanguageModelScore(mean, math.exp(mean), float(loss / math.log(2) / size))
