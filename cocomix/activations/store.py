"""The activation store: Parquet files of activations, shuffled on disk, read by whole row groups.

Each site has a folder, `<site>/<split>-<number>.parquet`; the same row of the same file is the same position of the
text at every site. Column `x` holds a vector as raw bytes (little-endian fp16, the bits of bf16, or int8: the file's
metadata states which, see `cocomix.activations.coding`). `FixedSizeBinary` without compression, dictionary or
statistics has the same layout in the file and in memory, which a Parquet list of numbers has not. `token`, `document`
and `position` give the origin of the vector. Any Parquet reader can open the files:
`numpy.frombuffer(row["x"], "<f2")`.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from cocomix.activations.coding import READ, STORED, Coded, Scale, as_tensor, decoded, metadata_of, scale_of
from cocomix.corpus.splits import Split
from cocomix.params import Site
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.columns import raw_column, rows_of

MIXED_GROUPS = 8
"""Row groups that are read and shuffled together."""
FOOTERS = 1024
"""Files whose footers are cached, some 20 kB each."""
PAGE_BYTES = 2**31 - 64
"""Largest data of a page in Parquet's format, without its levels."""


class Activations(NamedTuple):
    """Activations at one site, as they are stored, and their origin."""

    x: NDArray[Any]
    """[rows, d_model]: float16, the bits of bf16 as uint16, or int8."""
    token: NDArray[np.uint32]
    """[rows], the token id at this position."""
    document: NDArray[np.uint32]
    """[rows], the number of the document within its split."""
    position: NDArray[np.uint32]
    """[rows], the position in the window."""
    scale: Scale | None = None
    """The dequantisation; int8 only."""


def write_activations(path: Path, activations: Activations, row_group_tokens: int) -> None:
    """Write one file of the store, its rows in the order given."""
    origin = {name: pa.array(getattr(activations, name)) for name in ("token", "document", "position")}
    table = pa.table({"x": raw_column(activations.x)} | origin)
    pq.write_table(
        table.replace_schema_metadata(metadata_of(Coded(activations.x, activations.scale))),
        path,
        row_group_size=row_group_tokens,
        max_rows_per_page=row_group_tokens,
        data_page_size=activations.x[:row_group_tokens].nbytes,
        compression={"x": "none", "token": "zstd", "document": "zstd", "position": "zstd"},
        use_dictionary=False,
        write_statistics=False,
    )


class ActivationStore:
    """Reads one site of the activations artifact.

    Args:
        artifact: files `<site>/<split>-<number>.parquet`.
        site: its name; None: the artifact's first site.
    """

    def __init__(self, artifact: Artifact, site: str | None = None) -> None:
        self._artifact = artifact
        self.site = Site.parse(site or artifact.about["sites"][0])
        self.d_model: int = artifact.about["d_model"]
        self._dtype: Any = artifact.about["dtype"]
        self._row_group_tokens: int = artifact.about["row_group_tokens"]
        self._mixed_shards: int | None = artifact.about["mixed_shards"]
        self._footer = lru_cache(FOOTERS)(lambda name: pq.read_metadata(artifact.file(name)))

    def rows(self, split: Split) -> int:
        """Number of vectors of a split."""
        return sum(self._files(split).values())

    def in_order(self, split: Split) -> Iterator[Tensor]:
        """Yield all vectors in stored order, a row group at a time: [rows, d_model] float32."""
        return map(self.vectors, self.groups(split))

    def groups(self, split: Split) -> list["RowGroup"]:
        """The row groups of a split, in stored order."""
        return [group for name, rows in self._files(split).items() for group in self._groups(name, rows)]

    def vectors(self, group: "RowGroup") -> Tensor:
        """The vectors of a row group: [rows, d_model] float32."""
        return as_tensor(np.array(self._read(group))).float()

    def batches(self, split: Split, batch_size: int, *, seed: int, epoch: int = 0, start: int = 0) -> Iterator[Tensor]:
        """One epoch in random order, without an incomplete last batch.

        The order is a function of (seed, epoch) alone, so `start` resumes exactly. Row groups are permuted, either all
        or those of `mixed_shards` files at a time, with the files permuted too; then the rows of every `MIXED_GROUPS`
        row groups are permuted together.

        Args:
            start: batches to skip at the beginning.

        Yields:
            [batch_size, d_model] float32.
        """
        batch, filled = torch.empty(batch_size, self.d_model), 0
        for vectors in self._mixes(split, [seed, epoch], skip=start * batch_size):
            while len(vectors):
                some, vectors = vectors.tensor_split([batch_size - filled])
                batch[filled : filled + len(some)] = some
                filled += len(some)
                if filled == batch_size:
                    yield batch
                    batch, filled = torch.empty_like(batch), 0

    def _mixes(self, split: Split, seed: list[int], skip: int) -> Iterator[Tensor]:
        """Yield the shuffled vectors of a few row groups at a time, [rows, d_model]; the next ones are read ahead."""
        mixes = []
        for number, chosen in enumerate(self._mixed_groups(split, np.random.default_rng(seed))):
            rows = sum(group.rows for group in chosen)
            if skip < rows:
                mixes.append((chosen, [*seed, number], skip))
            skip = max(0, skip - rows)

        with ThreadPoolExecutor(1, "activations") as reader:
            ahead: Future[Tensor] | None = None
            for mix in mixes:
                now, ahead = ahead, reader.submit(self._mix, *mix)
                if now:
                    yield now.result()
            if ahead:
                yield ahead.result()

    def _mixed_groups(self, split: Split, generator: np.random.Generator) -> Iterator[list["RowGroup"]]:
        """Yield the row groups in random order, in lists that are shuffled together."""
        files = list(self._files(split).items())
        at_once = len(files)
        if self._mixed_shards:
            files = [files[each] for each in generator.permutation(len(files))]
            at_once = self._mixed_shards
        for first in range(0, len(files), at_once):
            groups = [group for file in files[first : first + at_once] for group in self._groups(*file)]
            groups = [groups[each] for each in generator.permutation(len(groups))]
            for at in range(0, len(groups), MIXED_GROUPS):
                yield groups[at : at + MIXED_GROUPS]

    def _mix(self, groups: list["RowGroup"], seed: list[int], skip: int) -> Tensor:
        ends = np.cumsum([group.rows for group in groups])
        places = np.random.default_rng(seed).permutation(ends[-1])
        mixed = np.empty((len(places), self.d_model), READ[self._dtype])
        for group, there in zip(groups, np.split(places, ends[:-1]), strict=True):
            mixed[there] = self._read(group)
        return as_tensor(mixed[skip:])

    def _files(self, split: Split) -> dict[str, int]:
        """The number of rows of each file of a split, by name."""
        return {name: self._artifact.rows(name) for name in self._artifact.names(f"{self.site}/{split}-")}

    def _groups(self, name: str, rows: int) -> list["RowGroup"]:
        size = self._row_group_tokens
        return [RowGroup(name, number, min(size, rows - number * size)) for number in range(-(-rows // size))]

    def _read(self, group: "RowGroup") -> NDArray[Any]:
        """A row group, decoded: [rows, d_model]."""
        # Parsing the footer each time, or using threads, would take as long as the reading itself.
        footer = self._footer(group.file)
        with pq.ParquetFile(self._artifact.file(group.file), metadata=footer, memory_map=True) as file:
            (vectors,) = file.read_row_group(group.number, columns=["x"], use_threads=False).column("x").chunks
        return decoded(rows_of(vectors, STORED[self._dtype], (self.d_model,)), scale_of(footer.metadata or {}))


class RowGroup(NamedTuple):
    """A row group of a file."""

    file: str
    number: int
    rows: int
