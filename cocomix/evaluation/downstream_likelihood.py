"""Log-likelihoods of continuations, computed in as few positions as they need.

- Continuations of one context (the choices of a question) share its keys and values: it is read once.
- The language model head sees only the positions that predict a continuation.
- Texts of like length are computed together, as many as fit a budget of tokens, and one of logits.

The figures are those of one forward pass over each whole text, up to rounding.
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

from cocomix.plumbing.device import device
from cocomix.plumbing.distributed import totals
from cocomix.plumbing.parts import Summing
from cocomix.plumbing.progress import progress
from cocomix.plumbing.runtime import LOGITS, runtime

Tokens = tuple[int, ...]
Item = TypeVar("Item")


class Request(NamedTuple):
    """A text to predict, and what stands before it; neither is empty."""

    context: Tokens
    continuation: Tokens


class Likelihood(NamedTuple):
    """Of a continuation, given its context."""

    log_likelihood: float
    """Of its tokens together, nats."""
    is_greedy: bool
    """Whether each of its tokens is the one that the model holds for the likeliest there."""


class _Piece(NamedTuple):
    """As much of a continuation as is predicted in one pass."""

    request: int
    context: Tokens
    continuation: Tokens

    @property
    def read(self) -> Tokens:
        """What the model reads: all but the last token."""
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
    """The likelihood of each request, in their order. Several processes share the work, and each gets all of it.

    Args:
        context: tokens that the model reads at most. A longer request loses the beginning of its context; a
            continuation that is longer by itself is predicted in windows side by side, each from the token before it.
        batch_tokens: tokens that the model holds at a time, padding included (a window at least); fewer, where their
            concepts would have more than `LOGITS` logits.
        task: for the progress.
        kept: see `Summing`.
    """
    model.eval().to(device())
    # Of concepts, a model makes logits at all positions.
    batch_tokens = min(batch_tokens, max(context, LOGITS // getattr(model.config, "num_concepts", 1)))
    batches = _batches([piece for n, each in enumerate(requests) for piece in _pieces(n, each, context)], batch_tokens)
    mine = batches[runtime().rank :: runtime().world_size]
    found = np.zeros((len(requests), 2))  # log-likelihood; tokens that are not the likeliest
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
    """Pieces that are computed together. Those of one context are in one batch, unless it is a single token."""
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
    """Items of like length, the longest first; each chunk fits `batch_tokens` when all are padded to its longest."""
    ordered = sorted(items, key=length, reverse=True)
    while ordered:
        size = max(1, batch_tokens // length(ordered[0]))
        yield ordered[:size]
        ordered = ordered[size:]


def _passes(batch: list[_Piece], batch_tokens: int, most: int) -> Iterator[list[_Piece]]:
    """The pieces of each pass: `_chunks`, parted where they would predict more than `most` tokens."""
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
    """Each piece's log-likelihood and its tokens that are not the likeliest ones, [2]."""
    rows = {context: row for row, context in enumerate(dict.fromkeys(piece.context for piece in batch))}
    # What contexts have more than the shortest, and their last token, which predicts, is read with each piece.
    done = min(map(len, rows)) - 1 if len(rows) < len(batch) else 0
    cache = None
    if done:
        ids = torch.tensor([context[:done] for context in rows], device=device())
        cache = model.base_model(ids, use_cache=True).past_key_values
    for pieces in _passes(batch, batch_tokens, LOGITS // model.config.vocab_size):
        own = _of_rows(cache, [rows[piece.context] for piece in pieces]) if cache is not None else None
        yield from zip(pieces, _score_rest(model, pieces, own, done), strict=True)


def _of_rows(cache: Cache, rows: list[int]) -> Cache:
    """A copy of the cache that holds these rows of its batch."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(torch.tensor(rows, device=device()))
    return selected


def _score_rest(model: PreTrainedModel, pieces: list[_Piece], cache: Cache | None, done: int) -> NDArray[Any]:
    """As `_score`, in one pass: [pieces, 2]. The cache holds the first `done` tokens of each."""
    texts = [piece.read[done:] for piece in pieces]
    # Padding is on the right, where a causal model's other positions do not see it.
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
