"""Keep freed memory in the process, so that the next step reuses it."""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of returning them to the kernel; does nothing with another C library.

    By default, glibc maps large tensors again at each step, or trims and regrows the heap, and the kernel clears each
    page in a page fault. This takes a sixth of a forward and backward pass on a CPU. Afterwards, the process holds its
    peak memory until it exits.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        # M_MMAP_THRESHOLD does not help: glibc allows at most 32 MB for it.
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
