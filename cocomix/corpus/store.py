"""The corpus on disk: one Parquet file a split, with the columns id, source, group and text."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.corpus.splits import SPLITS, Split
from cocomix.plumbing.errors import UserError

SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("group", pa.string()), ("text", pa.string())])
ROW_GROUP_BYTES = 2_000_000
"""Text of a row group: what a reader holds at a time, and a worker's share."""


class Document(NamedTuple):
    """One text."""

    source: str
    """Where it is from: a file and the line or row in it, or a module."""
    group: str
    """The same for documents that are alike, being of one package or cut from one text; else as `source`."""
    text: str

    def stripped(self) -> Self:
        """Without the white space around its text.

        Raises:
            UserError: when the text is not Unicode, which no file of ours could hold.
        """
        text = self.text.strip()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            place = f"half a surrogate pair at character {error.start + 1}"
            raise UserError(f"{self.source}: {place}: not Unicode") from None
        return self._replace(text=text)


class SplitSize(NamedTuple):
    """What one split holds."""

    documents: int
    bytes: int
    """UTF-8 bytes of text."""


def digest_of_text(text: bytes) -> bytes:
    """The 8 bytes that name a document: the same text, in UTF-8, has the same, everywhere."""
    return hashlib.blake2b(text, digest_size=8).digest()


def none_fits(source: str, size: int) -> UserError:
    """What to say where the first document is larger than all that may be kept."""
    return UserError(f"corpus.megabytes: the first document, {source}, alone has {size / 1e6:g}: allow more, or null")


class CorpusWriter:
    """Writes `<split>.parquet` for all splits side by side. The bytes depend on the documents and their order only."""

    def __init__(self, folder: Path) -> None:
        self._files = {split: _SplitFile(folder / f"{split}.parquet") for split in SPLITS}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def add(self, split: Split, digest: bytes, document: Document, size: int) -> None:
        """Append one document, whose text has `size` bytes."""
        self._files[split].add((digest.hex(), document.source, document.group, document.text), size)

    def sizes(self) -> dict[Split, SplitSize]:
        """What was added."""
        return {split: SplitSize(file.documents, file.bytes) for split, file in self._files.items()}


class _SplitFile:
    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=False)
        self._rows: list[tuple[str, str, str, str]] = []
        self._row_bytes = 0
        self.documents = self.bytes = 0

    def add(self, row: tuple[str, str, str, str], size: int) -> None:
        self._rows.append(row)
        self._row_bytes += size
        self.documents += 1
        self.bytes += size
        if self._row_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        columns = [pa.array(column, pa.string()) for column in zip(*self._rows, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=len(self._rows))
        self._rows, self._row_bytes = [], 0
