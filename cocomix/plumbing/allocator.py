"""Memory that is freed and wanted again at every step stays with the process."""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Ask glibc to reuse large blocks instead of returning them to the kernel; elsewhere it does nothing.

    By default large tensors are mapped anew, or the heap's end is cut off and grown again, and each page is cleared
    in a fault of its own: a sixth of a forward and backward pass on a CPU. The process then holds its peak of memory
    to its end.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        # Not M_MMAP_THRESHOLD, for which 32 MB is the largest value that glibc takes.
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
