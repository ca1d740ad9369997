"""Uncompressed sizes of the pages of a Parquet column, read before one is decompressed.

Arrow decompresses a page whole, and a page of a few kilobytes can hold gigabytes. Arrow does not expose the page
header with the size. It exposes where a column begins, but aborts the process if that part of the footer is damaged.
Both are structs of Thrift's compact protocol: https://github.com/apache/parquet-format, `PageHeader` and
`FileMetaData`.
"""

import os
from typing import IO, Any

_HEADER_BYTES = (1 << 10, 1 << 24)
"""Bytes to read at first, and at most: a header can hold the column's smallest and largest value."""
_ROW_GROUPS, _COLUMNS, _ROWS, _COLUMN, _PACKED, _DATA, _DICTIONARY = 4, 1, 3, 3, 7, 9, 11
"""Fields of the footer: of the file, of a row group, of a column's chunk, and of what describes the chunk."""


def largest_pages(file: IO[bytes], column: int) -> list[int]:
    """Uncompressed bytes of a column's largest page in each row group: an upper bound on the size of a value.

    Args:
        file: a file that Arrow has opened as Parquet.
        column: its number among the columns that hold values.

    Raises:
        ValueError: when the footer or a page header is invalid.
    """
    file.seek(-8, os.SEEK_END)
    size = int.from_bytes(file.read(4), "little")
    file.seek(-8 - size, os.SEEK_END)
    try:
        groups = _Struct(file.read(size)).fields()[_ROW_GROUPS]
        return [_largest_page(file, group[_COLUMNS][column][_COLUMN]) if group[_ROWS] else 0 for group in groups]
    except (IndexError, KeyError, TypeError):
        raise ValueError("the footer does not say where the column is") from None


def _largest_page(file: IO[bytes], chunk: dict[int, int]) -> int:
    at, largest = chunk[_DATA], 0
    if first := chunk.get(_DICTIONARY):
        at = min(at, first)
    end = at + chunk[_PACKED]
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
            fields = struct.fields()
        except IndexError:  # the header is longer
            continue
        unpacked, packed = fields.get(2), fields.get(3)
        if not (isinstance(unpacked, int) and isinstance(packed, int) and min(unpacked, packed) >= 0):
            break
        return unpacked, packed, struct.at
    raise ValueError(f"no header of a page at byte {at}")


class _Struct:
    """Reads one struct of Thrift's compact protocol."""

    def __init__(self, content: bytes) -> None:
        self._content, self.at = content, 0

    def fields(self) -> dict[int, Any]:
        """The fields that hold whole numbers, lists or structs, by their ids; the others are None.

        Raises:
            IndexError: when the content ends before the struct does.
        """
        found, field = dict[int, Any](), 0
        while head := self._byte():
            step, kind = divmod(head, 16)
            field = field + step if step else self._number()
            found[field] = self._value(kind)
        return found

    def _value(self, kind: int) -> Any:
        match kind:
            case 1 | 2:  # true and false: the kind is the value
                pass
            case 3:
                self._byte()
            case 4 | 5 | 6:  # integers of 16, 32 and 64 bits
                return self._number()
            case 7:
                self.at += 8
            case 8:
                size = self._varint()  # which moves `at`
                self.at += size
            case 9:
                return self._list()
            case 12:
                return self.fields()
            case _:
                raise ValueError(f"a field of kind {kind}")
        return None

    def _list(self) -> list[Any]:
        size, kind = divmod(self._byte(), 16)
        if size == 15:
            size = self._varint()
        if size > len(self._content) - self.at:  # a value takes a byte and more
            raise IndexError
        return [self._value(kind) for _ in range(size)]

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
