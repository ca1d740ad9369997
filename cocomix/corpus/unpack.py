"""Read files that may be compressed as streams of bytes, in bounded memory."""

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from cocomix.plumbing.errors import UserError, install

DAMAGE = (OSError, EOFError, zlib.error)
"""Exceptions that reading a damaged file raises."""
UNPACKED_BYTES, UNPACKED_TIMES = 256_000_000, 1000
"""A file may unpack to this many bytes, or to this many times its own size, whichever is more; real text is below."""

_CHUNK = 1 << 16
_PIECE = 1 << 10
"""Bytes of a .zst that the decoder receives at a time: four bytes can unpack to 128 KB."""
_WINDOW = 1 << 31
"""Largest window of a .zst, the format's maximum: `zstd --long=31`."""

PACKED = (".gz", ".zst")

Content = TypeVar("Content", str, bytes)


@contextmanager
def opened(path: Path, file: BinaryIO) -> Iterator[BinaryIO]:
    """The uncompressed content of `file`, which was opened at `path`.

    Reading raises one of `DAMAGE` where the file is damaged or truncated.

    Raises:
        UserError: when it unpacks to more than is allowed, or zstandard is not installed.
    """
    if path.suffix not in PACKED:
        yield file
        return
    chunks = _gzip(file) if path.suffix == ".gz" else _zstd(file)
    yield io.BufferedReader(_Chunks(limited(chunks, path)), _CHUNK)


def limited(chunks: Iterable[Content], path: Path) -> Iterator[Content]:
    """Yield the chunks of text or bytes that a file unpacks to.

    Raises:
        UserError: when they are more than is allowed.
    """
    limit = left = max(UNPACKED_BYTES, UNPACKED_TIMES * path.stat().st_size)
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise UserError(
                f"{path}: unpacks to more than {limit:,} bytes; allowed: {UNPACKED_BYTES:,}, "
                f"or {UNPACKED_TIMES} times its size"
            )
        yield chunk


def _gzip(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as content:
        while chunk := content.read(_CHUNK):
            yield chunk


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of all frames. zstandard's own stream reader does not detect a truncated file."""
    try:
        import zstandard
    except ModuleNotFoundError:
        raise UserError(f"files that end in .zst need zstandard: {install('pipeline')}") from None
    whole = True
    while piece := file.read(_PIECE):
        while piece:
            if whole:
                frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj(write_size=_CHUNK)
            try:
                yield frame.decompress(piece)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from None
            whole = frame.eof
            piece = frame.unused_data if whole else b""
    if not whole:
        raise EOFError("the file ends within a frame")


class _Chunks(io.RawIOBase):
    """A stream over chunks of bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._chunk = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._chunk:
            found = next(self._chunks, None)
            if found is None:
                return 0
            self._chunk = memoryview(found)
        size = min(len(buffer), len(self._chunk))
        buffer[:size] = self._chunk[:size]
        self._chunk = self._chunk[size:]
        return size
