"""Processes that do not outlive the one that started them (Linux only)."""

import ctypes
import signal
import sys

# Loaded here, since a process that has just been forked should load nothing.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when the one that started it ends."""
    PR_SET_PDEATHSIG = 1  # noqa: N806
    if _LIBC:
        _LIBC.prctl(PR_SET_PDEATHSIG, by)
