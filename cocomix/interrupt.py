"""Stopping at a safe point: signals are noted when they arrive and obeyed between two units of work."""

import signal
import time
from types import FrameType

ECHO_SECONDS = 1.0
"""One Ctrl-C or `kill` may reach a process twice, from the terminal's group and from its parent."""

_received: signal.Signals | None = None
_since = 0.0


class Interrupted(BaseException):
    """Raised at a safe point after SIGTERM or SIGINT; as KeyboardInterrupt, no `except Exception` catches it."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"stopped by {received.name}")
        self.received = received
        self.exit_code = 128 + received


def install() -> None:
    """Note SIGTERM and SIGINT from now on. Another one, more than a second later, kills at once."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _note)


def _note(number: int, _frame: FrameType | None) -> None:
    global _received, _since
    if _received is None:
        _received, _since = signal.Signals(number), time.monotonic()
    elif time.monotonic() - _since > ECHO_SECONDS:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def ignore() -> None:
    """From here to the exit, an echo of the signal must not change the exit status."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)


def received() -> signal.Signals | None:
    """The signal that asks this process to stop, if one has come."""
    return _received


def check() -> None:
    """Raise `Interrupted` if a stop was asked for. Call between two units of work."""
    if _received is not None:
        raise Interrupted(_received)
