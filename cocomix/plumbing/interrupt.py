"""Stopping at a safe point: signals are noted when they arrive and obeyed between two units of work."""

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
"""One Ctrl-C or `kill` may reach a process twice, from the terminal's group and from its parent."""

WAIT_SECONDS = 10.0
"""What `watch` grants besides twice the longest time that this process has needed between two signs of life."""

_received: signal.Signals | None = None
_since = 0.0
_last_sign, _longest_gap = 0.0, 0.0


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
        # Told once is enough: when the parent is killed for waiting too long, its death must not count as the second.
        outlive_parent()
        if held := lock.held():
            held.mark_stopping()
    elif time.monotonic() - _since > ECHO_SECONDS:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def watch(leave: Callable[[signal.Signals], NoReturn]) -> None:
    """From now on, have `leave` called some seconds after a signal if this process shows no sign of life.

    For one of several: while it waits for another, which may never come, no signal handler of Python's runs.

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
        patience = WAIT_SECONDS + 2 * _longest_gap if _last_sign else 1.0  # nothing is begun, and nothing lost
        is_still = now - max(since, _last_sign) > patience
        if is_still or (again and now - since > ECHO_SECONDS):
            leave(first)


def begin() -> None:
    """Long work begins. Signs of life are compared within it: before it, this process may have waited for others."""
    global _last_sign, _longest_gap
    _last_sign, _longest_gap = time.monotonic(), 0.0


def alive() -> None:
    """A sign of life. Where units of work are long, it is given within them too."""
    global _last_sign, _longest_gap
    now = time.monotonic()
    _longest_gap = max(_longest_gap, now - _last_sign) if _last_sign else 0.0
    _last_sign = now
    if _received is not None and (held := lock.held()):
        held.touch()


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
