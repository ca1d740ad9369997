"""Stop at a safe point: signals are recorded when they arrive and obeyed between two units of work."""

import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from cocomix.plumbing import lock
from cocomix.plumbing.parent import outlive_parent

ECHO_SECONDS = 1.0
"""Within this time a second signal is an echo: Ctrl-C may come from the terminal's group and from the parent."""

WAIT_SECONDS = 10.0
"""`watch` waits this long, plus twice the longest time between two signs of life of this process."""

_received: signal.Signals | None = None
_since = 0.0
_last_sign, _longest_gap = 0.0, 0.0


class Interrupted(BaseException):
    """Raised at a safe point after SIGTERM or SIGINT; like KeyboardInterrupt, no `except Exception` catches it."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"stopped by {received.name}")
        self.received = received
        self.exit_code = 128 + received


def install() -> None:
    """Record SIGTERM and SIGINT from now on; a second signal, more than a second later, kills at once."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _note)


def _note(number: int, _frame: FrameType | None) -> None:
    global _received, _since
    if _received is None:
        _received, _since = signal.Signals(number), math.inf  # an echo may come while the disk is slow below
        # If the parent is killed for waiting too long, its death must not count as the second signal.
        outlive_parent()
        if held := lock.held():
            held.mark_stopping()
        _since = time.monotonic()
    elif time.monotonic() - _since > ECHO_SECONDS:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def watch(leave: Callable[[signal.Signals], NoReturn]) -> None:
    """Call `leave` some seconds after a signal if this process shows no sign of life.

    For one of several processes: while it waits for another in a collective, no Python signal handler runs.

    Args:
        leave: ends the process; called in a thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, leave), daemon=True).start()


def _watch(reader: int, leave: Callable[[signal.Signals], NoReturn]) -> None:
    first, since = signal.Signals(os.read(reader, 1)[0]), time.monotonic()
    while True:
        again = select.select([reader], [], [], 0.1)[0] and os.read(reader, 1)
        now = time.monotonic()
        patience = WAIT_SECONDS + 2 * _longest_gap if _last_sign else 1.0  # no work has begun: nothing to save
        is_still = now - max(since, _last_sign) > patience
        if is_still or (again and now - since > ECHO_SECONDS):
            leave(first)


def begin() -> None:
    """Begin long work: gaps between signs of life count from here, since the process may have waited for others."""
    global _last_sign, _longest_gap
    _last_sign, _longest_gap = time.monotonic(), 0.0


def alive() -> None:
    """Give a sign of life; long units of work also call it within a unit."""
    global _last_sign, _longest_gap
    now = time.monotonic()
    _longest_gap = max(_longest_gap, now - _last_sign) if _last_sign else 0.0
    _last_sign = now
    if _received is not None and (held := lock.held()):
        held.touch()


def received() -> signal.Signals | None:
    """The signal that asked this process to stop, or None."""
    return _received


def check() -> None:
    """Raise `Interrupted` if a signal has arrived. Call it between two units of work."""
    if _received is not None:
        raise Interrupted(_received)
