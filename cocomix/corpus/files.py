"""Documents from text files: .txt, .md, .jsonl and .parquet, each plain or .gz or .zst."""

import codecs
import io
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape, glob
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.corpus.fields import field_of, names_of, unknown
from cocomix.corpus.pages import largest_pages
from cocomix.corpus.store import Document
from cocomix.corpus.unpack import DAMAGE, PACKED, limited, opened
from cocomix.params import FilesParams
from cocomix.plumbing.digests import digest_of_files
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import progress

DOCUMENT_BYTES = 64_000_000
"""Largest line of .jsonl, and largest page of .parquet: larger ones may not fit into memory."""
PIECE_CHARACTERS = 1 << 16
"""A longer text file is cut at blank lines into documents of about this size, so that memory stays small and a single
big file can be divided among the splits."""

_KINDS = (".txt", ".md", ".jsonl", ".parquet")
_CHUNK = 1 << 16
_ROWS = 64
_STRINGS = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
"""Parquet's types of a column that may hold text."""


class FileRow(NamedTuple):
    """The raw content of one document in a file."""

    source: str
    group: str
    content: str | bytes
    """The text, or the line of .jsonl that holds it."""


def find_files(paths: list[str]) -> list[Path]:
    """The files that the globs match, sorted.

    Raises:
        UserError: when a glob matches no file, or a file of an unknown kind.
    """
    found: set[Path] = set()
    for pattern in paths:
        matched = _glob(pattern)
        files = {Path(each) for each in matched if os.path.isfile(each)}
        if not files:
            other = f": {min(matched)} is a folder, or no regular file" if matched else ""
            raise UserError(f"corpus.files.paths: {pattern!r} matches no file in {Path.cwd()}{other}")
        found |= files
    for path in found:
        if _kind(path) not in _KINDS:
            raise UserError(
                f"{path}: not a known kind of file; allowed: {', '.join(_KINDS)}, each plain or .gz or .zst"
            )
    return sorted(found)


def files_digest(paths: list[str]) -> str:
    """Digest of the files' names and content."""
    return digest_of_files(find_files(paths))


def read_files(params: FilesParams) -> Iterator[Document]:
    """Yield all documents, file by file, in the order of the files' names. Memory holds a line or a few rows.

    Raises:
        UserError: for a file that is damaged, not UTF-8, or lacks the text field; it names the file and the line.
    """
    return (document_of(row, params.text_field) for row in read_rows(params))


def read_rows(params: FilesParams) -> Iterator[FileRow]:
    """Yield the rows that `read_files` turns into documents."""
    paths = find_files(params.paths)
    with progress("corpus", sum(path.stat().st_size for path in paths), "B") as bar:
        for path in paths:
            consumed = 0
            with _named_if_damaged(path):
                for position, row in _read(path, params.text_field):
                    yield row
                    bar.advance(position - consumed)
                    consumed = position
                bar.advance(path.stat().st_size - consumed)


def check_first_documents(params: FilesParams) -> None:
    """Read the first document of each file.

    Raises:
        UserError: as `read_files`.
    """
    for path in find_files(params.paths):
        with _named_if_damaged(path):
            for _, row in islice(_read(path, params.text_field), 1):
                document_of(row, params.text_field)


@contextmanager
def _named_if_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (*DAMAGE, pa.ArrowException, UnicodeDecodeError) as error:  # the last for the name of a column
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: damaged or unreadable: {reason}") from None


def document_of(row: FileRow, field: str) -> Document:
    """Parse a row into a document.

    Args:
        field: the field that holds the text in a line of .jsonl.

    Raises:
        UserError: for a line that is not a JSON object with that field.
    """
    source, group, content = row
    if isinstance(content, str):
        return Document(source, group, content)
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8: {error.reason} at byte {error.start + 1} of the line") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # a number with too many digits, or too deep nesting
        raise UserError(f"{source}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{source}: holds {type(value).__name__}, not an object with the field {field!r}")
    try:
        text = field_of(value, field)
    except KeyError:
        allowed = unknown(field, names_of(value))
        raise UserError(f"{source}: no field {field!r} (corpus.files.text_field); {allowed}") from None
    return Document(source, group, _text(text, source, field))


def _glob(pattern: str) -> set[str]:
    """As `glob`, but `**` visits no folder twice: symbolic links may form cycles."""
    before, stars, after = _around_stars(pattern)
    if not stars:
        return set(glob(pattern))
    roots = [root for root in glob(before) if os.path.isdir(root)] if before else [""]
    folders = (folder for root in roots for folder in _folders(root))
    return {found for folder in folders for found in _glob(os.path.join(escape(folder), after or "*"))}


def _around_stars(pattern: str) -> tuple[str, bool, str]:
    """The pattern before the first `**` part, whether that part exists, and the pattern after it."""
    parts = pattern.split("/")
    if "**" not in parts:
        return pattern, False, ""
    at = parts.index("**")
    return "/".join(parts[:at]) + "/" * (at > 0), True, "/".join(parts[at + 1 :])


def _folders(root: str) -> Iterator[str]:
    """Yield a folder and all folders below it once each, by a path without symbolic links where one exists."""
    seen: set[tuple[int, int]] = set()
    waiting = deque([root])
    while waiting:
        folder = waiting.popleft()
        try:
            state = os.stat(folder or ".")
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            inside = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
        except OSError:  # removed or unreadable: skipped, as by `glob`
            continue
        yield folder
        for entry in inside:
            name = os.path.join(folder, entry.name)
            # entry.is_dir() raises for a link in a circle; for what is no link it asks the file system nothing.
            is_folder = os.path.isdir(name) if entry.is_symlink() else entry.is_dir()
            if is_folder and not entry.name.startswith("."):
                (waiting.append if entry.is_symlink() else waiting.appendleft)(name)


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


def _read(path: Path, field: str) -> Iterator[tuple[int, FileRow]]:
    """Yield each row with its end, in bytes of the file on disk."""
    # A file name need not be UTF-8; a document's source must be.
    name = os.fsencode(path).decode(errors="backslashreplace")
    with path.open("rb") as file, opened(path, file) as content:
        if _kind(path) == ".parquet":
            if content is file:
                yield from _parquet(path, name, file, field)
                return
            with TemporaryFile() as unpacked:  # reading Parquet starts at the file's end
                shutil.copyfileobj(content, unpacked)
                yield from _parquet(path, name, unpacked, field)
            return
        for row in _jsonl(name, content) if _kind(path) == ".jsonl" else _plain(name, content):
            yield file.tell(), row


def _plain(name: str, file: BinaryIO) -> Iterator[FileRow]:
    line = 1  # where `text` begins
    text = ""
    for more in _decode(name, file):
        text += more
        while len(text) > PIECE_CHARACTERS:
            ends = (text.rfind(gap, 1, PIECE_CHARACTERS) for gap in ("\n\n", "\n", " "))
            end = next((each for each in ends if each > 0), PIECE_CHARACTERS)
            yield FileRow(f"{name}:{line}", name, text[:end])
            line += text.count("\n", 0, end)
            text = text[end:]
    yield FileRow(f"{name}:{line}", name, text)


def _decode(name: str, file: BinaryIO) -> Iterator[str]:
    """Yield the text in chunks, with all line ends as `\\n`."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    lines = 0
    chunk = file.read(_CHUNK)
    while chunk:
        following = file.read(_CHUNK)
        try:
            yield decoder.decode(chunk, final=not following)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n") + 1
            raise UserError(f"{name}:{line}: not UTF-8: {error.reason}") from None
        lines += chunk.count(b"\n")
        chunk = following


def _jsonl(name: str, file: BinaryIO) -> Iterator[FileRow]:
    number = 0
    while line := file.readline(DOCUMENT_BYTES + 1):
        number += 1
        place = f"{name}:{number}"
        if len(line) > DOCUMENT_BYTES:
            raise UserError(f"{place}: the line is longer than {DOCUMENT_BYTES:,} bytes, the most that is allowed")
        if line.strip():
            yield FileRow(place, place, line)


def _parquet(path: Path, name: str, file: IO[bytes], field: str) -> Iterator[tuple[int, FileRow]]:
    # Without read-ahead, memory holds pages instead of whole row groups.
    parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_CHUNK)
    size, rows = path.stat().st_size, max(1, parquet.metadata.num_rows)
    for number, text in enumerate(limited(_texts(name, file, parquet, field), path), 1):
        place = f"{name}:{number}"
        yield size * number // rows, FileRow(place, place, text)


def _texts(name: str, file: IO[bytes], parquet: pq.ParquetFile, field: str) -> Iterator[str]:
    """Yield the text of each row."""
    column, number = _column(name, parquet, field), 0
    try:
        pages = largest_pages(file, column)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: damaged or unreadable: {error}") from None
    for group, largest in enumerate(pages):
        if largest > DOCUMENT_BYTES:
            raise UserError(
                f"{name}:{number + 1}: a page of {field!r} in this row group unpacks to {largest:,} bytes; "
                f"allowed: {DOCUMENT_BYTES:,}"
            )
        # No value is larger than the largest page, so these rows fit into memory however well they are compressed.
        at_once = max(1, min(_ROWS, DOCUMENT_BYTES // max(1, largest)))
        for batch in parquet.iter_batches(at_once, row_groups=[group], columns=[field]):
            for value in batch.column(0):
                number += 1
                try:
                    found = field_of({batch.schema.names[0]: value.as_py()}, field)
                    text = found.decode() if isinstance(found, bytes) else found
                except UnicodeDecodeError as error:
                    raise UserError(f"{name}:{number}: not UTF-8: {error.reason}") from None
                yield _text(text, f"{name}:{number}", field)


def _column(name: str, parquet: pq.ParquetFile, field: str) -> int:
    """The number of the column that holds the field.

    Raises:
        UserError: when there is none, or it does not hold one text per row.
    """
    columns = {
        column.path: (number, column)
        for number, column in enumerate(map(parquet.schema.column, range(len(parquet.schema))))
        if not column.max_repetition_level  # without lists, which hold any number of values a row
    }
    schema = parquet.schema_arrow
    if field not in columns and field in schema.names:
        raise UserError(f"{name}: the column {field!r} holds {schema.field(field).type}, not text")
    if field not in columns:
        allowed = unknown(field, columns)
        raise UserError(f"{name}: no column {field!r} (corpus.files.text_field); {allowed}")
    number, column = columns[field]
    if column.physical_type not in _STRINGS and str(column.logical_type.type) != "NULL":  # all values are missing
        raise UserError(f"{name}: the column {field!r} holds {column.physical_type}, not text")
    return number


def _text(value: object, place: str, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{place}: the field {field!r} holds {type(value).__name__}, not text")
    return value
