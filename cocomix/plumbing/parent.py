"""Processes that do not outlive the one that started them."""

import ctypes
import os
import signal
import sys

# Loaded here, since a process that has just been forked should load nothing.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """End this process with the one that started it, also if that one has ended already.

    The kernel does it, and only Linux' can; elsewhere nothing happens to a parent that ends later.

    Args:
        parent: its process id.
        by: the signal to end by.
    """
    PR_SET_PDEATHSIG = 1  # noqa: N806
    if _LIBC:
        _LIBC.prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), by)


def outlive_parent() -> None:
    """Take back `end_with_parent`."""
    PR_SET_PDEATHSIG = 1  # noqa: N806
    if _LIBC:
        _LIBC.prctl(PR_SET_PDEATHSIG, 0)
