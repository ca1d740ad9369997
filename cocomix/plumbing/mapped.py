"""Arrays that are mapped into memory from a file."""

import mmap
from typing import Any

from numpy.typing import NDArray


def read_at_random(array: NDArray[Any]) -> None:
    """Tell the kernel that a mapped array is read in random order; does nothing to an array in memory.

    Otherwise it reads some 100 KB around each page, and a batch of windows fills the page cache with their neighbours.
    """
    mapped: mmap.mmap | None = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
