"""Uncompressed sizes of the pages of a Parquet column, read before one is decompressed.

Arrow decompresses a page whole, and a page of a few kilobytes can hold gigabytes. Arrow does not expose the page
header with the size. It is a struct of Thrift's compact protocol: https://github.com/apache/parquet-format,
`PageHeader`.
"""

from typing import IO

import pyarrow.parquet as pq

_HEADER_BYTES = (1 << 10, 1 << 24)
"""Bytes to read at first, and at most: a header can hold the column's smallest and largest value."""


def largest_page(file: IO[bytes], column: pq.ColumnChunkMetaData) -> int:
    """Uncompressed bytes of the largest page of a column in a row group: an upper bound on the size of a value.

    Raises:
        ValueError: when a page header is invalid.
    """
    first = column.dictionary_page_offset
    at = min(first, column.data_page_offset) if first else column.data_page_offset
    end, largest = at + column.total_compressed_size, 0
    while at < end:
        size, packed, header = _sizes(file, at)
        largest = max(largest, size)
        at += header + packed
    return largest


def _sizes(file: IO[bytes], at: int) -> tuple[int, int, int]:
    """Bytes of the page at offset `at` of the file: uncompressed, compressed, and of its header."""
    for size in _HEADER_BYTES:
        file.seek(at)
        struct = _Struct(file.read(size))
        try:
            numbers = struct.numbers()
        except IndexError:  # the header is longer
            continue
        if numbers.get(2, -1) < 0 or numbers.get(3, -1) < 0:
            break
        return numbers[2], numbers[3], struct.at
    raise ValueError(f"no header of a page at byte {at}")


class _Struct:
    """Reads one struct of Thrift's compact protocol."""

    def __init__(self, content: bytes) -> None:
        self._content, self.at = content, 0

    def numbers(self) -> dict[int, int]:
        """The fields that are whole numbers, by their ids; the others are skipped.

        Raises:
            IndexError: when the content ends before the struct does.
        """
        found, field = dict[int, int](), 0
        while head := self._byte():
            step, kind = divmod(head, 16)
            field = field + step if step else self._number()
            if kind in (4, 5, 6):  # integers of 16, 32 and 64 bits
                found[field] = self._number()
            else:
                self._skip(kind)
        return found

    def _skip(self, kind: int) -> None:
        match kind:
            case 1 | 2:  # true and false: the kind is the value
                pass
            case 3:
                self._byte()
            case 7:
                self.at += 8
            case 8:
                size = self._varint()  # which moves `at`
                self.at += size
            case 12:
                self.numbers()
            case _:
                raise ValueError(f"a header of a page with a field of kind {kind}")

    def _number(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift

    def _byte(self) -> int:
        byte = self._content[self.at]
        self.at += 1
        return byte
