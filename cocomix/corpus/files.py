"""Documents from text files: .txt, .md, .jsonl and .parquet, each plain or .gz or .zst."""

import codecs
import io
import json
import shutil
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.corpus.store import Document
from cocomix.digests import digest_of_files
from cocomix.errors import UserError, suggestion
from cocomix.params import FilesParams
from cocomix.progress import progress

PIECE_CHARACTERS = 1 << 16
"""A longer text file is cut at blank lines into documents of about this size: memory stays small, and a single
big file can be split."""

_COMPRESSION: dict[str, Literal["gzip", "zstd"]] = {".gz": "gzip", ".zst": "zstd"}
_KINDS = (".txt", ".md", ".jsonl", ".parquet")
_CHUNK = 1 << 16
_ROWS = 64


def find_files(paths: list[str]) -> list[Path]:
    """The files that globs match, sorted.

    Raises:
        UserError: when a glob matches nothing, or something that is no text file.
    """
    found: set[Path] = set()
    for pattern in paths:
        matched = {path for each in glob(pattern, recursive=True) if (path := Path(each)).is_file()}
        if not matched:
            raise UserError(f"corpus.files.paths: {pattern!r} matches no file in {Path.cwd()}")
        found |= matched
    for path in found:
        if _kind(path) not in _KINDS:
            raise UserError(
                f"{path}: not a known kind of file; allowed: {', '.join(_KINDS)}, each plain or .gz or .zst"
            )
    return sorted(found)


def files_digest(paths: list[str]) -> str:
    """Digest of the files' names and content: with the code, they decide what is read."""
    return digest_of_files(find_files(paths))


def read_files(params: FilesParams) -> Iterator[Document]:
    """All documents, file by file, in the order of the files' names. Memory holds a line or a few rows at a time.

    Raises:
        UserError: for a file that is damaged, not UTF-8, or lacks the text field; it names the file and the line.
    """
    paths = find_files(params.paths)
    with progress("corpus", sum(path.stat().st_size for path in paths), "B") as bar:
        for path in paths:
            consumed = 0
            try:
                for position, document in _read(path, params.text_field):
                    yield document
                    bar.advance(position - consumed)
                    consumed = position
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{path}: damaged or unreadable: {str(error).splitlines()[0]}") from None
            bar.advance(path.stat().st_size - consumed)


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _COMPRESSION else path.suffix


def _read(path: Path, field: str) -> Iterator[tuple[int, Document]]:
    """Documents, each with how far into the file they end, in bytes on the disk."""
    with pa.OSFile(str(path), "rb") as file:
        compression = _COMPRESSION.get(path.suffix)
        # Arrow, unlike the gzip and zstandard modules, reads both, and says when a stream ends too early.
        stream = pa.CompressedInputStream(file, compression) if compression else file
        if _kind(path) == ".parquet":
            with TemporaryFile() as unpacked:  # Parquet is read from its end
                if compression:
                    shutil.copyfileobj(stream, unpacked)
                yield from _parquet(path, unpacked if compression else file, field)
            return
        buffered = io.BufferedReader(cast(io.RawIOBase, stream), _CHUNK)
        for document in _jsonl(path, buffered, field) if _kind(path) == ".jsonl" else _plain(path, buffered):
            yield file.tell(), document


def _plain(path: Path, file: BinaryIO) -> Iterator[Document]:
    line = 1  # where `text` begins
    text = ""
    for more in _decode(path, file):
        text += more
        while len(text) > PIECE_CHARACTERS:
            ends = (text.rfind(gap, 1, PIECE_CHARACTERS) for gap in ("\n\n", "\n", " "))
            end = next((each for each in ends if each > 0), PIECE_CHARACTERS)
            yield Document(f"{path}:{line}", str(path), text[:end])
            line += text.count("\n", 0, end)
            text = text[end:]
    yield Document(f"{path}:{line}", str(path), text)


def _decode(path: Path, file: BinaryIO) -> Iterator[str]:
    """The text, a chunk at a time, with `\\n` for all ends of lines."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    lines = 0
    chunk = file.read(_CHUNK)
    while chunk:
        following = file.read(_CHUNK)
        try:
            yield decoder.decode(chunk, final=not following)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n") + 1
            raise UserError(f"{path}:{line}: not UTF-8: {error.reason}") from None
        lines += chunk.count(b"\n")
        chunk = following


def _jsonl(path: Path, file: BinaryIO, field: str) -> Iterator[Document]:
    for number, line in enumerate(file, 1):
        place = f"{path}:{number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8: {error.reason} at byte {error.start + 1} of the line") from None
        except json.JSONDecodeError as error:
            if not line.strip():
                continue
            raise UserError(f"{place}: not valid JSON: {error.msg} at character {error.pos + 1}") from None
        except (ValueError, RecursionError) as error:  # a number of too many digits, endless nesting
            raise UserError(f"{place}: not readable as JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{place}: holds {type(row).__name__}, not an object with the field {field!r}")
        if field not in row:
            raise UserError(f"{place}: no field {field!r} (corpus.files.text_field); {suggestion(field, row)}")
        yield Document(place, place, _text(row[field], place, field))


def _parquet(path: Path, file: pa.NativeFile | IO[bytes], field: str) -> Iterator[tuple[int, Document]]:
    # Without read-ahead, memory holds pages instead of whole row groups.
    parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_CHUNK)
    names = parquet.schema_arrow.names
    if field not in names:
        raise UserError(f"{path}: no column {field!r} (corpus.files.text_field); {suggestion(field, names)}")
    size, rows, number = path.stat().st_size, parquet.metadata.num_rows, 0
    for batch in parquet.iter_batches(_ROWS, columns=[field]):
        for value in batch.column(0):
            number += 1
            place = f"{path}:{number}"
            try:
                text = value.as_py()
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: not UTF-8: {error.reason}") from None
            yield size * number // rows, Document(place, place, _text(text, place, field))


def _text(value: object, place: str, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{place}: the field {field!r} holds {type(value).__name__}, not text")
    return value
