"""Stopping at a safe point: signals are noted when they arrive and obeyed between two units of work."""

import signal
from types import FrameType

_received: signal.Signals | None = None


class Interrupted(Exception):
    """Raised at a safe point after SIGTERM or SIGINT: what is finished has been saved."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"stopped by {received.name}")
        self.exit_code = 128 + received


def install() -> None:
    """Note SIGTERM and SIGINT from now on. A second signal kills at once."""

    def note(number: int, _frame: FrameType | None) -> None:
        global _received
        _received = signal.Signals(number)
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, note)


def requested() -> bool:
    """Whether a stop was asked for."""
    return _received is not None


def check() -> None:
    """Raise `Interrupted` if a stop was asked for. Call between two units of work."""
    if _received is not None:
        raise Interrupted(_received)
