"""The activation store: Parquet files of fp16 rows, shuffled on disk, read by whole row groups.

Column `x` holds a residual stream vector as 2 * d_model raw bytes (fp16, little-endian): `FixedSizeBinary` without
compression, dictionary or statistics reads at memory speed and without a copy, where a Parquet list of numbers does
not. `token`, `document` and `position` say where the vector comes from. Any Parquet reader can open the files:
`numpy.frombuffer(row["x"], "<f2")`.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from cocomix.artifact import Artifact
from cocomix.columns import raw_column, rows_of
from cocomix.tokens.windows import Split

MIXED_GROUPS = 8
"""Row groups that are read and shuffled together."""


class Activations(NamedTuple):
    """Residual stream vectors and where they come from."""

    x: NDArray[np.float16]
    """[rows, d_model]."""
    token: NDArray[np.uint32]
    """[rows], the token id at this position."""
    document: NDArray[np.uint32]
    """[rows], the number of the document within its split."""
    position: NDArray[np.uint32]
    """[rows], the place in the window."""


def write_activations(path: Path, activations: Activations, row_group_tokens: int) -> None:
    """Write one file of the store, its rows in the order given."""
    origin = {name: pa.array(getattr(activations, name)) for name in ("token", "document", "position")}
    pq.write_table(
        pa.table({"x": raw_column(activations.x)} | origin),
        path,
        row_group_size=row_group_tokens,
        compression={"x": "none", "token": "zstd", "document": "zstd", "position": "zstd"},
        use_dictionary=False,
        write_statistics=False,
    )


class ActivationStore:
    """Reads the activations artifact.

    Args:
        artifact: files `<split>-<number>.parquet`.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.d_model: int = artifact.about["d_model"]
        self.layer: int = artifact.about["layer"]
        self._row_group_tokens: int = artifact.about["row_group_tokens"]

    def rows(self, split: Split) -> int:
        """Vectors of a split."""
        return sum(self._artifact.rows(name) for name in self._artifact.names(f"{split}-"))

    def in_order(self, split: Split) -> Iterator[Tensor]:
        """All vectors, a row group at a time: [rows, d_model] float32."""
        for group in self._groups(split):
            yield torch.from_numpy(self._read(group).astype(np.float32))

    def batches(self, split: Split, batch_size: int, *, seed: int, epoch: int = 0, start: int = 0) -> Iterator[Tensor]:
        """One epoch in random order, its incomplete last batch left out.

        The order is a function of (seed, epoch) alone, so `start` resumes exactly: row groups are permuted, and
        the rows of each `MIXED_GROUPS` of them are permuted together.

        Args:
            start: batches to leave out at the beginning.

        Yields:
            [batch_size, d_model] float32.
        """
        pieces: list[Tensor] = []
        missing = batch_size
        for vectors in self._mixes(split, [seed, epoch], skip=start * batch_size):
            while len(vectors):
                piece, vectors = vectors[:missing], vectors[missing:]
                pieces.append(piece.float())
                missing -= len(piece)
                if not missing:
                    yield torch.cat(pieces) if len(pieces) > 1 else pieces[0]
                    pieces, missing = [], batch_size

    def _mixes(self, split: Split, seed: list[int], skip: int) -> Iterator[Tensor]:
        """The vectors of a few row groups at a time in their random order, [rows, d_model] float16; read one ahead.

        A mix is overwritten once the next is asked for.
        """
        groups = self._groups(split)
        groups = [groups[each] for each in np.random.default_rng(seed).permutation(len(groups))]
        mixes = []
        for number, at in enumerate(range(0, len(groups), MIXED_GROUPS)):
            chosen = groups[at : at + MIXED_GROUPS]
            rows = sum(group.rows for group in chosen)
            if skip < rows:
                mixes.append((chosen, [*seed, number], skip))
            skip = max(0, skip - rows)

        # One is read while the other is taken from: fresh memory for each mix would cost as much as the reading.
        buffers = [torch.empty(MIXED_GROUPS * self._row_group_tokens, self.d_model, dtype=torch.float16) for _ in "ab"]
        with ThreadPoolExecutor(1, "activations") as reader:
            ahead: Future[Tensor] | None = None
            for number, mix in enumerate(mixes):
                now, ahead = ahead, reader.submit(self._mix, buffers[number % 2], *mix)
                if now:
                    yield now.result()
            if ahead:
                yield ahead.result()

    def _mix(self, buffer: Tensor, groups: list["_Group"], seed: list[int], skip: int) -> Tensor:
        ends = np.cumsum([group.rows for group in groups])
        places = np.random.default_rng(seed).permutation(ends[-1])
        for group, end in zip(groups, ends, strict=True):
            buffer.numpy()[places[end - group.rows : end]] = self._read(group)
        return buffer[skip : ends[-1]]

    def _groups(self, split: Split) -> list["_Group"]:
        size = self._row_group_tokens
        return [
            _Group(name, number, min(size, rows - number * size))
            for name in self._artifact.names(f"{split}-")
            for rows in [self._artifact.rows(name)]
            for number in range(-(-rows // size))
        ]

    def _read(self, group: "_Group") -> NDArray[np.float16]:
        with pq.ParquetFile(self._artifact.file(group.file)) as file:
            (vectors,) = file.read_row_group(group.number, columns=["x"]).column("x").chunks
        return rows_of(vectors, np.float16, (self.d_model,))


class _Group(NamedTuple):
    """A row group of a file."""

    file: str
    number: int
    rows: int
