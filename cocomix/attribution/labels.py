"""The concept labels on disk: one Parquet row per token window, in the order of the windows.

Column `concepts` holds the window's labels as raw bytes, unsigned integers [context, k_attr], best first; column
`scores` holds their attribution scores, fp16 [context, k_attr], clamped to fp16's range. An entry without a label holds
the integer type's maximum and the score 0: all entries of a window's last position, which has no next token, and the
last entries of a position with fewer than k_attr concepts of the wanted sign.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from cocomix.corpus.splits import Split
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.columns import raw_column, rows_of
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.shards import check_shards
from cocomix.tokens.windows import Tokens

LARGEST_SCORE = float(np.finfo(np.float16).max)
ROW_GROUP_WINDOWS = 256
"""Windows per row group, and read at a time."""


class Labels(NamedTuple):
    """Labels of some windows."""

    concepts: NDArray[np.unsignedinteger]
    """[windows, context, k_attr]."""
    scores: NDArray[np.float16]
    """[windows, context, k_attr]."""


def label_type(number: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned integer type that holds each of a number of concepts and the mark of no label."""
    return np.dtype(np.uint16 if number <= np.iinfo(np.uint16).max else np.uint32)


def write_labels(path: Path, labels: Labels) -> None:
    """Write one file of labels."""
    pq.write_table(
        pa.table({"concepts": raw_column(labels.concepts), "scores": raw_column(labels.scores)}),
        path,
        row_group_size=ROW_GROUP_WINDOWS,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
    )


class ConceptLabels:
    """Reads the concepts artifact.

    Args:
        artifact: files `<split>-<number>.parquet`.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.number: int = artifact.about["concepts"]
        """Number of concepts to choose labels from."""
        self.k_attr: int = artifact.about["k_attr"]
        self.context: int = artifact.about["context"]
        self.dtype = label_type(self.number)
        self.no_label = int(np.iinfo(self.dtype).max)
        """Marks an entry without a label."""

    def read(self, split: Split) -> Iterator[Labels]:
        """The labels of a split and their scores, a few windows at a time, in the order of the windows."""
        for name in self._artifact.names(f"{split}-"):
            yield from read_labels(self._artifact.file(name), self.context, self.k_attr, self.dtype)

    def unpack(
        self, tokens: Tokens, split: Split, target: Path, what: Literal["concepts", "scores"] = "concepts"
    ) -> NDArray[Any]:
        """The labels of all windows of a split, or their scores, memory-mapped: [windows, context, k_attr].

        All processes call this; the first one streams the labels once into `target`, an .npy file. An existing target
        is complete and is used as it is, so it must lie where only this artifact's labels can be (a work folder).

        Args:
            tokens: the artifact whose windows are labelled.

        Raises:
            UserError: when the labels do not have the shape of the tokens' windows.
        """
        check_shards(self._artifact, self.context, tokens, split, "labels", "attribution")
        if runtime().rank == 0 and not target.exists():
            self._unpack(split, (*tokens.windows(split).shape, self.k_attr), target, what)
        distributed.barrier()
        return np.load(distributed.see(target), mmap_mode="r")

    def _unpack(self, split: Split, shape: tuple[int, int, int], target: Path, what: str) -> None:
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        dtype = self.dtype if what == "concepts" else np.dtype(np.float16)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with aside.open("wb") as file:  # not memory-mapped: there a full disk raises no error but SIGBUS
            np.lib.format.write_array_header_1_0(file, header)
            for labels in self.read(split):
                file.write(getattr(labels, what).tobytes())
            file.flush()
            os.fsync(file)
        aside.replace(target)


def read_labels(path: Path, context: int, k_attr: int, dtype: DTypeLike) -> Iterator[Labels]:
    """The labels of a file, a few windows at a time."""
    shape = (context, k_attr)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP_WINDOWS):
            yield Labels(
                rows_of(batch.column("concepts"), dtype, shape), rows_of(batch.column("scores"), np.float16, shape)
            )
