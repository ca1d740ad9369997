"""Files that hold something for every training and validation window, in the order of the windows."""

from typing import NamedTuple

from cocomix.tokens.windows import Split, Tokens


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
    splits: tuple[Split, ...] = ("train", "validation")
    return [
        WindowShard(f"{split}-{start // shard_windows:05d}.parquet", split, start, min(start + shard_windows, windows))
        for split in splits
        for windows in [len(tokens.windows(split))]
        for start in range(0, windows, shard_windows)
    ]
