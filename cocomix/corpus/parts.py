"""Documents in parts, each written to disk once it is complete: a killed process loses a few parts.

Parts depend on the source and its parameters alone, so any number of workers writes the same ones.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cocomix.corpus.contamination import read_benchmarks
from cocomix.corpus.near_duplicates import VALUES, signatures
from cocomix.corpus.runs import word_hashes
from cocomix.corpus.store import Document, digest_of_text
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from cocomix.plumbing.workers import in_order

PART_BYTES = 8_000_000
"""Size of a part where the source is one long stream."""

_ROW_BYTES = 100
"""Overhead of a row besides its content, counted in the size of a part."""
_SIGNATURE = pa.binary(4 * VALUES)
_FORMAT = pa.ipc.IpcWriteOptions(compression="lz4")

Item = TypeVar("Item")


class Stretch(NamedTuple, Generic[Item]):
    """Consecutive rows of a stream."""

    rows: list[Item]
    error: str | None
    """Why the stream could not be read beyond these rows; None: it could."""

    def all(self) -> Iterator[Item]:
        """Yield the rows, then raise the error, if any."""
        yield from self.rows
        if self.error:
            raise UserError(self.error)


class Marks(NamedTuple):
    """What is computed of each document besides its digest and its size."""

    signature: bool = False
    """Its signature, for near-duplicates."""
    benchmarks: Path | None = None
    """The file of the benchmarks of which it may contain a piece: see `write_benchmarks`."""


NO_MARKS = Marks()


def in_parts(
    make: Callable[[Item], Iterable[Document]], items: Iterable[Item | None], folder: Path, marks: Marks = NO_MARKS
) -> Iterator[Path]:
    """Yield the file of each part, in order: one part per item, with the documents that `make` returns.

    Documents are stripped of surrounding white space. Parts that an earlier process has written are not computed again;
    their items may be None. A part has the columns source, group, text, id (the digest of the text, in hexadecimal) and
    bytes (of the text), and one for each of `marks`.

    Args:
        make: must be picklable.
        folder: where the parts are kept.

    Raises:
        UserError: raised by `make`, after the part with the documents before the error was yielded.
    """
    folder.mkdir(exist_ok=True)
    tasks: Iterator[_Task[Item]] = (_Task(make, item, _path(folder, n), marks) for n, item in enumerate(items))
    for task in tasks:
        if not task.path.exists():
            tasks = chain([task], tasks)
            break
        yield task.path
    for part in in_order(_keep, (task._replace(item=None) if task.path.exists() else task for task in tasks)):
        yield part.path
        if part.error:
            raise UserError(part.error)


def in_shared_parts(
    make: Callable[[Item], Iterable[Document]], items: Iterable[Item], folder: Path, marks: Marks
) -> Iterator[Path]:
    """As `in_parts`, with the parts shared by the processes, all of which must call it with the same items.

    Each process goes through all items and computes every n-th part. Nothing is yielded before all parts are there.
    """
    folder.mkdir(exist_ok=True)
    paths: list[Path] = []

    def own() -> Iterator[_Task[Item]]:
        for number, item in enumerate(items):
            paths.append(path := _path(folder, number))
            if number % runtime().world_size == runtime().rank and not path.exists():
                yield _Task(make, item, path, marks)

    for part in in_order(_keep, own()):
        if part.error:
            raise UserError(part.error)
    distributed.barrier()
    return map(distributed.see, paths)


def stretches(rows: Iterable[Item], size: Callable[[Item], int]) -> Iterator[Stretch[Item]]:
    """Cut a stream into stretches of about `PART_BYTES`, where `size` gives the bytes of a row."""
    found: list[Item] = []
    filled = 0
    try:
        for row in rows:
            found.append(row)
            filled += size(row) + _ROW_BYTES
            if filled >= PART_BYTES:
                yield Stretch(found, None)
                found, filled = [], 0
    except UserError as error:  # the consumer raises it after the rows before it
        yield Stretch(found, str(error))
        return
    if found:
        yield Stretch(found, None)


def kept(folder: Path) -> list[int]:
    """Numbers of documents in the parts that an earlier process has written, up to the first missing part."""
    counts: list[int] = []
    while (path := _path(folder, len(counts))).exists():
        counts.append(read_part(path, "bytes").num_rows)
    return counts


def read_part(path: Path, *columns: str) -> pa.Table:
    """Some columns of a part, decompressed."""
    with pa.memory_map(str(path)) as file:
        names = pa.ipc.open_file(file).schema.names
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(each) for each in columns])
        return pa.ipc.open_file(file, options=options).read_all().select(columns)


def read_documents(path: Path) -> list[Document]:
    """The documents of a part."""
    columns = read_part(path, *Document._fields).columns
    return [Document(*row) for row in zip(*(column.to_pylist() for column in columns), strict=True)]


def read_signatures(path: Path) -> NDArray[np.uint32]:
    """The signatures of a part's documents: uint32 [documents, VALUES]."""
    (column,) = read_part(path, "signature").columns
    return np.frombuffer(b"".join(column.to_pylist()), np.uint32).reshape(-1, VALUES)  # type: ignore[arg-type]


class _Task(NamedTuple, Generic[Item]):
    make: Callable[[Item], Iterable[Document]]
    item: Item | None
    path: Path
    marks: Marks


class _Part(NamedTuple):
    path: Path
    error: str | None


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.arrow"


def _keep(task: _Task[Item]) -> _Part:
    if task.item is None:
        return _Part(task.path, None)
    documents: list[Document] = []
    error = None
    try:
        for document in task.make(task.item):
            documents.append(document.stripped())
    except UserError as trouble:
        error = str(trouble)
    table = _table(documents, task.marks)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=_FORMAT) as writer:
        writer.write_table(table)
    # A part with an error is read again in the next run: the cause may be gone by then.
    path = task.path.with_suffix(".failed") if error else task.path
    write_atomically(path, memoryview(sink.getvalue()))
    return _Part(path, error)


def _table(documents: Sequence[Document], marks: Marks) -> pa.Table:
    texts = [document.text for document in documents]
    encoded = [text.encode() for text in texts]
    columns: dict[str, pa.Array[Any]] = {
        "source": pa.array([document.source for document in documents], pa.string()),
        "group": pa.array([document.group for document in documents], pa.string()),
        "text": pa.array(texts, pa.string()),
        "id": pa.array([digest_of_text(each).hex() for each in encoded], pa.string()),
        "bytes": pa.array([len(each) for each in encoded], pa.int64()),
    }
    words = [word_hashes(text) for text in texts] if marks != NO_MARKS else []
    if marks.signature:
        content = pa.py_buffer(signatures(words).tobytes())
        columns["signature"] = pa.Array.from_buffers(_SIGNATURE, len(texts), [None, content])
    if marks.benchmarks:
        benchmarks = read_benchmarks(marks.benchmarks)
        columns["found"] = pa.array([benchmarks.found_in(each) for each in words], pa.list_(pa.int32()))
    return pa.table(columns)
