"""Arrays in Parquet columns, each row as raw bytes: read at memory speed, without a copy.

`FixedSizeBinary` allows that; a Parquet list of numbers stores a definition level for each number.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray


def raw_column(rows: NDArray[Any]) -> pa.FixedSizeBinaryArray:
    """`rows` [rows, ...] as a column of `rows[0].nbytes` bytes each; the memory is shared."""
    rows = np.ascontiguousarray(rows)
    width = rows.itemsize * int(np.prod(rows.shape[1:]))
    column: Any = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows.data)])
    return column


def rows_of(column: Any, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Inverse of `raw_column`: read-only [rows, *shape] that shares the memory of the Arrow array `column`."""
    size = int(np.prod(shape))
    flat = np.frombuffer(memoryview(column.buffers()[1]), dtype)
    return flat[column.offset * size :][: len(column) * size].reshape(-1, *shape)


def ragged_column(values: NDArray[Any], lengths: NDArray[np.integer]) -> pa.LargeBinaryArray:
    """A column whose row i holds the next `lengths[i]` of the flat `values` [sum of lengths]; the memory is shared."""
    offsets = values.itemsize * np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    buffers = [None, pa.py_buffer(offsets.data), pa.py_buffer(np.ascontiguousarray(values).data)]
    column: Any = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths), buffers)
    return column


def values_of(column: Any, dtype: DTypeLike) -> NDArray[Any]:
    """Inverse of `ragged_column`: the values of all rows, flat, read-only, sharing the memory of the Arrow array."""
    offsets = np.frombuffer(memoryview(column.buffers()[1]), np.int64)[column.offset :][: len(column) + 1]
    return np.frombuffer(memoryview(column.buffers()[2])[offsets[0] : offsets[-1]], dtype)
