"""Files that hold something for every training and validation window, in the order of the windows."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from cocomix.base.loading import micro_batch
from cocomix.corpus.splits import LABELLED, Split
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.parts import Advance
from cocomix.plumbing.progress import progress
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.windows import Tokens

Columns = TypeVar("Columns", bound=tuple)  # type: ignore[type-arg]
"""A NamedTuple of arrays, in the order of the windows."""


class WindowShard(NamedTuple):
    """A file to write."""

    name: str
    split: Split
    start: int
    stop: int
    """It covers the token windows [start, stop) of the split."""


def window_shards(tokens: Tokens, shard_tokens: int) -> list[WindowShard]:
    """Cut all training and validation windows, in order, into shards of `shard_tokens`, at least one window each."""
    shard_windows = max(1, shard_tokens // tokens.context)
    return [
        WindowShard(f"{split}-{start // shard_windows:05d}.parquet", split, start, min(start + shard_windows, windows))
        for split in LABELLED
        for windows in [len(tokens.windows(split))]
        for start in range(0, windows, shard_windows)
    ]


def write_shards(
    work: Work,
    tokens: Tokens,
    shard_tokens: int,
    compute: Callable[[WindowShard, Advance], Columns],
    write: Callable[[Path, Columns], None],
) -> None:
    """Write this process's shards, and wait for the other processes.

    Args:
        compute: the columns of a shard's windows; it reports the tokens that are done, as `in_batches` does.
        write: writes one file.
    """
    shards = window_shards(tokens, shard_tokens)
    work.expect(each.name for each in shards)
    mine = shards[runtime().rank :: runtime().world_size]
    missing = [shard for shard in mine if not work.has(shard.name)]
    total, left = (sum(each.stop - each.start for each in some) * tokens.context for some in (mine, missing))
    with progress(work.stage, total, "tokens", total - left) as bar:
        for shard in missing:
            columns = compute(shard, bar.advance)
            with work.write(shard.name) as pending:
                pending.rows = shard.stop - shard.start
                write(pending.path, columns)
    work.wait()


def in_batches(windows: range, context: int, compute: Callable[[range], Columns], advance: Advance) -> Columns:
    """The columns of some windows of a split, computed a micro-batch at a time.

    Args:
        windows: their numbers in the split.
        context: tokens of a window.
        compute: the columns of the windows that have these numbers.
    """
    per_batch, parts = micro_batch(context), list[Columns]()
    for start in range(windows.start, windows.stop, per_batch):
        some = range(start, min(start + per_batch, windows.stop))
        parts.append(compute(some))
        advance(len(some) * context)
    return type(parts[0])(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def check_shards(artifact: Artifact, context: int, tokens: Tokens, split: Split, has: str, stage: str) -> None:
    """Check that an artifact's shards are of all windows of a split.

    Args:
        context: tokens of a window, as the artifact says.
        has: how an error says what it has, such as `has draws of`.
        stage: that makes the artifact.

    Raises:
        UserError: when they are not.
    """
    windows, expected = sum(map(artifact.rows, artifact.names(f"{split}-"))), tokens.windows(split).shape
    if (windows, context) != expected:
        raise UserError(
            f"{artifact.path}: {has} {windows} windows of {context} tokens of the {split} split, "
            f"{tokens.artifact.path} has {expected[0]} of {expected[1]}; run the stage {stage!r} again"
        )
