"""The corpus on disk: one Parquet file per split, with the columns id, source, group and text."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.corpus.splits import SPLITS, Split
from cocomix.plumbing.errors import UserError

SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("group", pa.string()), ("text", pa.string())])
ROW_GROUP_BYTES = 2_000_000
"""Text of a row group, the unit that a reader holds in memory and that a worker processes."""


class Document(NamedTuple):
    """One document: its text and origin."""

    source: str
    """Where the text is from: a file with a line or row, or a module."""
    group: str
    """Shared by related documents, of one package or cut from one text; otherwise the same as `source`."""
    text: str

    def stripped(self) -> Self:
        """The document without white space around its text.

        Raises:
            UserError: when the text has lone surrogates, which UTF-8 cannot encode.
        """
        text = self.text.strip()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            place = f"half a surrogate pair at character {error.start + 1}"
            raise UserError(f"{self.source}: {place}: not Unicode") from None
        return self._replace(text=text)


class SplitSize(NamedTuple):
    """Size of a split."""

    documents: int
    bytes: int
    """UTF-8 bytes of text."""


def digest_of_text(text: bytes) -> bytes:
    """Digest of 8 bytes that identifies a document by its UTF-8 text, on every machine."""
    return hashlib.blake2b(text, digest_size=8).digest()


def none_fits(limit: str, source: str, size: int) -> UserError:
    """The error for a first document that is larger than the limit, which is given by its key."""
    return UserError(f"{limit}: the first document, {source}, alone has {size / 1e6:g}: allow more, or null")


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

    def add(self, split: Split, documents: pa.Table) -> None:
        """Append documents: a table with the columns of `SCHEMA`, and `bytes`, the size of each text."""
        self._files[split].add(documents)

    def sizes(self) -> dict[Split, SplitSize]:
        """The sizes of the splits so far."""
        return {split: SplitSize(file.documents, file.bytes) for split, file in self._files.items()}


class _SplitFile:
    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=False)
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        self.documents = self.bytes = 0

    def add(self, documents: pa.Table) -> None:
        texts, sizes = documents.select(SCHEMA.names), documents["bytes"].to_numpy()
        self.documents += len(sizes)
        self.bytes += int(sizes.sum())
        while len(sizes):
            # A row group ends with the document that fills it.
            ends = self._waiting_bytes + np.cumsum(sizes)
            count = min(int(np.searchsorted(ends, ROW_GROUP_BYTES)) + 1, len(sizes))
            self._waiting.append(texts[:count])
            self._waiting_bytes = int(ends[count - 1])
            texts, sizes = texts[count:], sizes[count:]
            if self._waiting_bytes >= ROW_GROUP_BYTES:
                self._flush()

    def close(self) -> None:
        if self._waiting:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        group = pa.concat_tables(self._waiting).combine_chunks()
        self._writer.write_table(group, row_group_size=group.num_rows)
        self._waiting, self._waiting_bytes = [], 0
