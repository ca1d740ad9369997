"""Log-likelihoods of continuations, computed at as few positions as possible.

- Continuations of one context (the choices of a question) share its keys and values, which are computed once.
- The language model head runs only at the positions that predict a continuation.
- Texts of similar length form a batch, within a budget of tokens and one of logits.

The results equal one forward pass over each whole text, up to rounding.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from cocomix.plumbing.device import device, most_logits
from cocomix.plumbing.distributed import from_first, totals
from cocomix.plumbing.parts import Summing
from cocomix.plumbing.progress import progress
from cocomix.plumbing.runtime import runtime

Tokens = tuple[int, ...]
Item = TypeVar("Item")


class Request(NamedTuple):
    """A text to predict and the text before it; neither is empty."""

    context: Tokens
    continuation: Tokens


class Likelihood(NamedTuple):
    """Log-likelihood of a continuation given its context."""

    log_likelihood: float
    """Sum over its tokens, in nats."""
    is_greedy: bool
    """Whether each of its tokens is the model's most likely one."""


class _Piece(NamedTuple):
    """The part of a continuation that is predicted in one forward pass."""

    request: int
    context: Tokens
    continuation: Tokens

    @property
    def read(self) -> Tokens:
        """The tokens that the model reads: all but the last one."""
        return (*self.context, *self.continuation[:-1])


@torch.no_grad()
def log_likelihoods(
    model: PreTrainedModel,
    requests: Sequence[Request],
    context: int,
    batch_tokens: int,
    task: str,
    kept: Path | None = None,
) -> list[Likelihood]:
    """The likelihood of each request, in order; several processes share the work, and each returns all results.

    Args:
        context: maximum tokens that the model reads. A longer request loses the start of its context; a continuation
            that is longer by itself is predicted in disjoint windows, each conditioned on the token before it.
        batch_tokens: maximum tokens per forward pass, padding included (at least a window); fewer if their concepts
            would have more than `most_logits` logits.
        task: description for the progress bar.
        kept: see `Summing`.
    """
    model.eval().to(device())
    # The concept head computes logits at all positions.
    most = from_first(most_logits())  # the processes share one list of batches, whatever their GPUs
    batch_tokens = min(batch_tokens, max(context, most // getattr(model.config, "num_concepts", 1)))
    batches = _batches([piece for n, each in enumerate(requests) for piece in _pieces(n, each, context)], batch_tokens)
    mine = batches[runtime().rank :: runtime().world_size]
    found = np.zeros((len(requests), 2))  # log-likelihood; number of tokens that are not the most likely
    summing = Summing(kept, mine, found)
    with progress(task, sum(map(len, mine)), "continuations", sum(map(len, summing.done))) as bar:
        for batch in summing:
            for piece, scores in _score(model, batch, batch_tokens):
                found[piece.request] += scores
            bar.advance(len(batch))
    found = np.reshape(totals(*found.flatten().tolist()), found.shape)
    return [Likelihood(float(total), missed == 0) for total, missed in found]


def _pieces(number: int, request: Request, context: int) -> Iterator[_Piece]:
    given, wanted = request
    if len(wanted) <= context:
        yield _Piece(number, given[-(context + 1 - len(wanted)) :], wanted)
        return
    tokens = (given[-1], *wanted)
    for start in range(0, len(wanted), context):
        yield _Piece(number, tokens[start : start + 1], tokens[start + 1 : start + 1 + context])


def _batches(pieces: list[_Piece], batch_tokens: int) -> list[list[_Piece]]:
    """Group pieces into batches; those of one context share a batch, unless the context is a single token."""
    by_context: defaultdict[object, list[_Piece]] = defaultdict(list)
    for number, piece in enumerate(pieces):
        by_context[piece.context if len(piece.context) > 1 else number].append(piece)
    alone = [group[0] for group in by_context.values() if len(group) == 1]
    shared = [group for group in by_context.values() if len(group) > 1]
    together = _chunks(shared, lambda group: len(group[0].context), batch_tokens)
    return [
        *_chunks(alone, lambda piece: len(piece.read), batch_tokens),
        *(list(chain.from_iterable(groups)) for groups in together),
    ]


def _chunks(items: list[Item], length: Callable[[Item], int], batch_tokens: int) -> Iterator[list[Item]]:
    """Chunks of similar length, longest first; each fits `batch_tokens` after padding to its longest item."""
    ordered = sorted(items, key=length, reverse=True)
    while ordered:
        size = max(1, batch_tokens // length(ordered[0]))
        yield ordered[:size]
        ordered = ordered[size:]


def _passes(batch: list[_Piece], batch_tokens: int, most: int) -> Iterator[list[_Piece]]:
    """The pieces of each forward pass: `_chunks`, split where they would predict more than `most` tokens."""
    for chunk in _chunks(batch, lambda piece: len(piece.read), batch_tokens):
        pieces, predicted = list[_Piece](), 0
        for piece in chunk:
            predicted += len(piece.continuation)
            if pieces and predicted > most:
                yield pieces
                pieces, predicted = [], len(piece.continuation)
            pieces.append(piece)
        yield pieces


def _score(model: PreTrainedModel, batch: list[_Piece], batch_tokens: int) -> Iterator[tuple[_Piece, NDArray[Any]]]:
    """Each piece's log-likelihood and its number of tokens that are not the most likely, [2]."""
    rows = {context: row for row, context in enumerate(dict.fromkeys(piece.context for piece in batch))}
    # Read with each piece: tokens of contexts beyond the shortest one's length, and the last token, which predicts.
    done = min(map(len, rows)) - 1 if len(rows) < len(batch) else 0
    cache = None
    if done:
        ids = torch.tensor([context[:done] for context in rows], device=device())
        cache = model.base_model(ids, use_cache=True).past_key_values
    for pieces in _passes(batch, batch_tokens, most_logits() // model.config.vocab_size):
        own = _of_rows(cache, [rows[piece.context] for piece in pieces]) if cache is not None else None
        yield from zip(pieces, _score_rest(model, pieces, own, done), strict=True)


def _of_rows(cache: Cache, rows: list[int]) -> Cache:
    """A copy of the cache with these rows of its batch."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(torch.tensor(rows, device=device()))
    return selected


def _score_rest(model: PreTrainedModel, pieces: list[_Piece], cache: Cache | None, done: int) -> NDArray[Any]:
    """`_score` in one forward pass: [pieces, 2]. The cache holds the first `done` tokens of each piece."""
    texts = [piece.read[done:] for piece in pieces]
    # Padding is on the right, where causal attention hides it from the other positions.
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    counts = torch.tensor([len(piece.continuation) for piece in pieces])
    ends = torch.tensor([len(text) for text in texts])
    owner = torch.arange(len(pieces)).repeat_interleave(counts)
    within = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    wanted = torch.tensor([token for piece in pieces for token in piece.continuation]).to(device())
    where = owner.to(device()), ((ends - counts)[owner] + within).to(device())

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][where],))
    try:
        kept = {"use_cache": False} if cache is None else {"past_key_values": cache}
        logits: Tensor = model(ids.to(device()), **kept).logits  # [tokens to predict, vocab]
    finally:
        handle.remove()
    log_likelihood = -F.cross_entropy(logits.float(), wanted, reduction="none")
    missed = logits.argmax(-1) != wanted
    scores = torch.stack([log_likelihood, missed], dim=1).cpu().double()
    return torch.zeros(len(pieces), 2, dtype=torch.float64).index_add_(0, owner, scores).numpy()
