"""Documents in parts, each kept on the disk once it is made: a killed process loses a few of them.

Parts depend on the source and its parameters alone, so any number of workers makes the same ones.
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
"""Of a source that is one long stream."""

_ROW_BYTES = 100
"""What a row takes besides its content, for the size of a part."""
_SCHEMA = pa.schema([("source", pa.string()), ("group", pa.string()), ("text", pa.string())])
_FORMAT = pa.ipc.IpcWriteOptions(compression="lz4")

Item = TypeVar("Item")


class Stretch(NamedTuple, Generic[Item]):
    """Rows of a stream that follow each other."""

    rows: list[Item]
    error: str | None
    """Why the stream ends behind them, where it could not be read on."""

    def all(self) -> Iterator[Item]:
        """The rows; at their end, the error is raised."""
        yield from self.rows
        if self.error:
            raise UserError(self.error)


def in_parts(
    make: Callable[[Item], Iterable[Document]], items: Iterable[Item | None], folder: Path
) -> Iterator[list[Document]]:
    """The documents that `make` gives for every item, part by part in the order of the items.

    They come without the white space around them. Parts that an earlier process has kept are not made again; items
    for those may be None.

    Args:
        make: can be pickled.
        folder: where the parts are kept.

    Raises:
        UserError: what `make` raises, after the documents before.
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
    """A stream cut into stretches of about `PART_BYTES`, as `size` counts them."""
    found: list[Item] = []
    filled = 0
    try:
        for row in rows:
            found.append(row)
            filled += size(row) + _ROW_BYTES
            if filled >= PART_BYTES:
                yield Stretch(found, None)
                found, filled = [], 0
    except UserError as error:  # raised in its place, after what comes before
        yield Stretch(found, str(error))
        return
    if found:
        yield Stretch(found, None)


def kept(folder: Path) -> list[int]:
    """How many documents the parts have that an earlier process kept, as far as none is missing."""
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
    # A part with an error is made again: what could not be read once may be read the next time.
    path = task.path.with_suffix(".failed") if error else task.path
    write_atomically(path, memoryview(sink.getvalue()))
    return _Part(path, error)


def _table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _read(path: Path) -> list[Document]:
    return [Document(*row) for row in zip(*(column.to_pylist() for column in _table(path).columns), strict=True)]
