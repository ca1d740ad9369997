"""Documents in parts, each written to disk once it is complete: a killed process loses a few parts.

Parts depend on the source and its parameters alone, so any number of workers writes the same ones.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import pyarrow as pa

from cocomix.corpus.store import Document
from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.workers import in_order

PART_BYTES = 8_000_000
"""Size of a part where the source is one long stream."""

_ROW_BYTES = 100
"""Overhead of a row besides its content, counted in the size of a part."""
_SCHEMA = pa.schema([("source", pa.string()), ("group", pa.string()), ("text", pa.string())])
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


def in_parts(
    make: Callable[[Item], Iterable[Document]], items: Iterable[Item | None], folder: Path
) -> Iterator[list[Document]]:
    """Yield the documents that `make` returns for each item, one part per item, in the order of the items.

    Documents are stripped of surrounding white space. Parts that an earlier process has written are not computed again;
    their items may be None.

    Args:
        make: must be picklable.
        folder: where the parts are kept.

    Raises:
        UserError: raised by `make`, after the documents before the error were yielded.
    """
    folder.mkdir(exist_ok=True)
    tasks: Iterator[_Task[Item]] = (_Task(make, item, _path(folder, number)) for number, item in enumerate(items))
    for task in tasks:
        if not task.path.exists():
            tasks = chain([task], tasks)
            break
        yield _read(task.path)
    for part in in_order(_keep, (task._replace(item=None) if task.path.exists() else task for task in tasks)):
        yield _read(part.path)
        if part.error:
            raise UserError(part.error)


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
        counts.append(_table(path).num_rows)
    return counts


class _Task(NamedTuple, Generic[Item]):
    make: Callable[[Item], Iterable[Document]]
    item: Item | None
    path: Path


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
    columns = zip(*documents, strict=True) if documents else ([], [], [])
    table = pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=_SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _SCHEMA, options=_FORMAT) as writer:
        writer.write_table(table)
    # A part with an error is read again in the next run: the cause may be gone by then.
    path = task.path.with_suffix(".failed") if error else task.path
    write_atomically(path, memoryview(sink.getvalue()))
    return _Part(path, error)


def _table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _read(path: Path) -> list[Document]:
    return [Document(*row) for row in zip(*(column.to_pylist() for column in _table(path).columns), strict=True)]
