"""Tokens drawn from the base model's next-token distribution, on disk: one Parquet row per token window, in order.

All columns hold raw bytes. Column `unique` has the number of different tokens drawn at each position, uint8 [context];
`gaps` these tokens, ascending at each position, position by position, in the smallest unsigned type that holds the
vocabulary; `counts` how often each was drawn, uint8; `entropies` the entropy of the whole distribution at each
position, in nats, fp16 [context]. A window's last position has no next token: no draws, and the entropy 0.

A gap is the id minus the one before it in the file, at first minus 0, modulo the type's range: gaps compress better.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import DTypeLike, NDArray

from cocomix.corpus.splits import Split
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.columns import ragged_column, raw_column, rows_of, values_of
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.mapped import read_at_random
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.shards import check_shards
from cocomix.tokens.window_data import Drawn
from cocomix.tokens.windows import Tokens

ROW_GROUP_WINDOWS = 256
"""Windows per row group, and read at a time."""


class PackedDraws(NamedTuple):
    """Draws of some windows, without padding."""

    unique: NDArray[np.uint8]
    """Number of different tokens drawn at each position: [windows, context]."""
    ids: NDArray[np.unsignedinteger]
    """These tokens, position by position: [sum of unique]."""
    counts: NDArray[np.uint8]
    """How often each was drawn: [sum of unique]."""
    entropies: NDArray[np.float16]
    """Of the whole distribution, in nats: [windows, context]."""


def id_type(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned integer type that holds every token id."""
    return np.dtype(np.min_scalar_type(vocab_size - 1))


def pack(drawn: NDArray[np.integer], entropies: NDArray[np.floating], vocab_size: int) -> PackedDraws:
    """Count the draws of each position.

    Args:
        drawn: token ids, ascending at each position: [windows, context - 1, draws].
        entropies: [windows, context - 1].
    """
    flat = drawn.reshape(-1)
    is_first = np.ones(drawn.shape, np.bool_)
    is_first[:, :, 1:] = drawn[:, :, 1:] != drawn[:, :, :-1]
    places = np.flatnonzero(is_first)
    to_context = ((0, 0), (0, 1))
    return PackedDraws(
        np.pad(is_first.sum(2, dtype=np.uint8), to_context),
        flat[places].astype(id_type(vocab_size)),
        np.diff(places, append=len(flat)).astype(np.uint8),
        np.pad(entropies.astype(np.float16), to_context),
    )


def write_draws(path: Path, packed: PackedDraws) -> None:
    """Write one file of draws."""
    lengths = packed.unique.sum(1, dtype=np.int64)
    columns = {
        "unique": raw_column(packed.unique),
        "gaps": ragged_column(np.diff(packed.ids, prepend=packed.ids.dtype.type(0)), lengths),
        "counts": ragged_column(packed.counts, lengths),
        "entropies": raw_column(packed.entropies),
    }
    pq.write_table(
        pa.table(columns),
        path,
        row_group_size=ROW_GROUP_WINDOWS,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
    )


def read_draws(path: Path, context: int, dtype: DTypeLike) -> Iterator[PackedDraws]:
    """The draws of a file, a few windows at a time.

    Args:
        dtype: of the ids.
    """
    before = np.zeros(1, dtype)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP_WINDOWS):
            ids = before + np.cumsum(values_of(batch.column("gaps"), dtype), dtype=dtype)
            yield PackedDraws(
                rows_of(batch.column("unique"), np.uint8, (context,)),
                ids,
                values_of(batch.column("counts"), np.uint8),
                rows_of(batch.column("entropies"), np.float16, (context,)),
            )
            before = ids[-1:]


class Draws:
    """Reads the distribution artifact.

    Args:
        artifact: files `<split>-<number>.parquet`.

    Raises:
        UserError: when the artifact was made without draws.
    """

    def __init__(self, artifact: Artifact) -> None:
        if artifact.about["draws"] is None:
            raise UserError(f"{artifact.path}: holds no draws; set distribution.draws, such as 50, and run its stage")
        self._artifact = artifact
        self.draws: int = artifact.about["draws"]
        """Tokens drawn at each position."""
        self.context: int = artifact.about["context"]
        self.dtype = id_type(artifact.about["vocab_size"])

    def read(self, split: Split) -> Iterator[PackedDraws]:
        """The draws of a split, a few windows at a time, in the order of the windows."""
        for name in self._artifact.names(f"{split}-"):
            yield from read_draws(self._artifact.file(name), self.context, self.dtype)

    def unpack(self, tokens: Tokens, split: Split, folder: Path) -> "WindowDraws":
        """The draws of all windows of a split, memory-mapped.

        All processes call this; the first one streams the draws once into .npy files in `folder`. An existing folder
        is complete and is used as it is, so it must lie where only this artifact's draws can be (a work folder).

        Args:
            tokens: the artifact whose windows the draws are of.

        Raises:
            UserError: when the draws do not have the shape of the tokens' windows.
        """
        check_shards(self._artifact, self.context, tokens, split, "has draws of", "distribution")
        if runtime().rank == 0 and not folder.exists():
            self._unpack(split, folder)
        distributed.barrier()
        folder = distributed.see(folder)
        packed = PackedDraws(*(np.load(_file(folder, name), mmap_mode="r") for name in PackedDraws._fields))
        return WindowDraws(packed, np.load(_file(folder, "starts"), mmap_mode="r"), self.draws)

    def _unpack(self, split: Split, folder: Path) -> None:
        lengths = np.concatenate([part.unique.sum(1, dtype=np.int64) for part in self.read(split)])
        starts = np.concatenate([[0], np.cumsum(lengths)])
        per_position, per_id = (len(lengths), self.context), (int(starts[-1]),)
        layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
            "unique": (np.dtype(np.uint8), per_position),
            "ids": (self.dtype, per_id),
            "counts": (np.dtype(np.uint8), per_id),
            "entropies": (np.dtype(np.float16), per_position),
        }
        aside = folder.with_name(f".{folder.name}.{os.getpid()}")
        aside.mkdir(exist_ok=True)
        with ExitStack() as stack:  # not memory-mapped: there a full disk raises no error but SIGBUS
            files = {name: stack.enter_context(_file(aside, name).open("wb")) for name in layout}
            for name, (dtype, shape) in layout.items():
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(files[name], header)
            for part in self.read(split):
                for name, values in part._asdict().items():
                    files[name].write(values.data)
            files["starts"] = stack.enter_context(_file(aside, "starts").open("wb"))
            np.save(files["starts"], starts)
            for file in files.values():
                file.flush()
                os.fsync(file)
        aside.replace(folder)


class WindowDraws:
    """The draws of a split's windows, as batches.

    Args:
        packed: the draws.
        starts: where the ids of each window begin in `packed.ids`, and at last their number: int64 [windows + 1].
        draws: tokens drawn at each position.
    """

    def __init__(self, packed: PackedDraws, starts: NDArray[np.int64], draws: int) -> None:
        self._packed, self._starts, self._draws = packed, starts, draws

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._packed.unique)

    def read_at_random(self) -> None:
        """Prepare for batches of windows in random order."""
        for each in (*self._packed, self._starts):
            read_at_random(each)

    def batch(self, rows: NDArray[np.int64] | slice) -> Drawn:
        """The draws of the windows `rows`, padded to the most that any of their positions has; none at the last one."""
        unique = self._packed.unique[rows]
        spans = [slice(*each) for each in zip(self._starts[:-1][rows], self._starts[1:][rows], strict=True)]
        ids, counts = (np.concatenate([flat[each] for each in spans]) for flat in self._packed[1:3])
        is_there = np.arange(unique.max()) < unique[:, :, None]
        padded_ids, shares = np.full(is_there.shape, -1, np.int64), np.zeros(is_there.shape, np.float32)
        padded_ids[is_there] = ids
        shares[is_there] = counts / np.float32(self._draws)
        return Drawn(*map(torch.from_numpy, (padded_ids, shares, self._packed.entropies[rows].astype(np.float32))))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"
