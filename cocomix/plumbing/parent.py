"""Processes that do not outlive the one that started them."""

import ctypes
import os
import signal
import sys

# Loaded at import, since a process that was just forked should load nothing.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """End this process when its parent ends, or now if the parent has ended already.

    It relies on the Linux kernel; elsewhere, the later end of a parent has no effect.

    Args:
        parent: the parent's process id.
        by: the signal that ends this process.
    """
    PR_SET_PDEATHSIG = 1  # noqa: N806
    if _LIBC:
        _LIBC.prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it ended before the prctl call
        os.kill(os.getpid(), by)


def outlive_parent() -> None:
    """Undo `end_with_parent`."""
    PR_SET_PDEATHSIG = 1  # noqa: N806
    if _LIBC:
        _LIBC.prctl(PR_SET_PDEATHSIG, 0)
