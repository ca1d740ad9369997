"""Assign positions of the text to the files of the activation store.

The token windows are chosen by a seeded permutation, without replacement, and cut into shards. Nothing in a shard
depends on which process computes it, so any number of processes writes the same files.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cocomix.corpus.splits import SPLITS, Split
from cocomix.params import ActivationsParams
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import say
from cocomix.tokens.windows import Tokens

COUNTED_WINDOWS = 4096
"""Windows whose kept positions are counted at a time."""


class ActivationShard(NamedTuple):
    """The content of one file of the store, the same positions for each site."""

    name: str
    split: Split
    windows: NDArray[np.int64]
    """Its token windows, ascending: [windows]."""
    seed: list[int]
    """Seed of the order of its rows."""
    rows: int
    """Number of its positions."""


def activation_shards(tokens: Tokens, split: Split, params: ActivationsParams) -> list[ActivationShard]:
    """The requested number of positions of a split, or all if it has fewer, in whole windows, cut into shards.

    A shard without kept positions is left out.

    Raises:
        UserError: when no position of the split is kept, or a token to drop is not in the vocabulary.
    """
    budget = params.tokens if split == "train" else params.validation_tokens
    dropped = dropped_ids(tokens, params)
    seeds = [params.seed, SPLITS.index(split)]
    chosen = np.random.default_rng(seeds).permutation(len(tokens.windows(split)))
    counts: list[int] = []
    total = 0
    for at in range(0, len(chosen), COUNTED_WINDOWS):
        counts += kept(tokens, split, chosen[at : at + COUNTED_WINDOWS], params, dropped).sum(1).tolist()
        total += sum(counts[at:])
        if total >= budget:
            break
    ends = np.cumsum(counts)
    if not len(ends) or not ends[-1]:
        raise UserError(f"activations: the {split} split has no positions to store; drop fewer tokens, or add text")
    if ends[-1] < budget:
        say(
            f"activations: the {split} split holds {ends[-1]:,} tokens, "
            f"fewer than the {budget:,} asked for: taking them all"
        )
    chosen = chosen[: np.searchsorted(ends, budget) + 1]
    size = max(1, params.shard_tokens // tokens.context)
    return [
        ActivationShard(f"{split}-{number:05d}.parquet", split, np.sort(chosen[at : at + size]), [*seeds, number], rows)
        for number, at in enumerate(range(0, len(chosen), size))
        if (rows := sum(counts[at : min(at + size, len(chosen))]))
    ]


def kept(
    tokens: Tokens, split: Split, windows: NDArray[np.int64], params: ActivationsParams, dropped: list[int]
) -> NDArray[np.bool_]:
    """Mask of the positions of some windows that are stored: [windows, context].

    Args:
        dropped: `dropped_ids`.
    """
    keep = np.ones((len(windows), tokens.context), np.bool_)
    if params.drop_first:
        keep[:, 0] = False
        if params.separate_documents:
            keep[:, 1:] = np.diff(tokens.documents(split, windows)) == 0
    if dropped:
        keep &= ~np.isin(tokens.windows(split)[windows], dropped)
    return keep


def dropped_ids(tokens: Tokens, params: ActivationsParams) -> list[int]:
    """The ids of `drop_tokens`.

    Raises:
        UserError: for a token that is not in the vocabulary.
    """
    return ids_to_drop(tokens.tokenizer().get_vocab(), params) if params.drop_tokens else []


def ids_to_drop(vocabulary: Mapping[str, int], params: ActivationsParams) -> list[int]:
    """As `dropped_ids`, given the id of each token."""
    ids = [vocabulary.get(each, -1) if isinstance(each, str) else each for each in params.drop_tokens]
    known = set(vocabulary.values())
    for each, token in zip(params.drop_tokens, ids, strict=True):
        if token not in known:
            raise UserError(f"activations.drop_tokens: {each!r}: no token of the vocabulary of {len(vocabulary)}")
    return ids
