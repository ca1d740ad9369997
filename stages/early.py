"""Signal handling of a stage before its imports, which take seconds: it ends with DVC, and by signals in one line."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

END_CLAIM = "STAGE_END_CLAIM"
"""Environment variable with a file's path; the process that creates the file is the first to end early."""

STARTED = "STAGE_STARTED"
"""Environment variable with the monotonic time in seconds at which the stage, or its launcher, started."""


def note_start() -> None:
    """Note when the stage starts, unless its launcher has."""
    os.environ.setdefault(STARTED, str(time.monotonic()))


def started() -> float:
    """The monotonic time of the stage's start, in seconds; now, if it is not noted."""
    return float(os.environ.get(STARTED, time.monotonic()))


def first_to_end() -> bool:
    """Whether this is the first process of the job to fail or to be stopped: only the first one reports the cause.

    From now on the process ignores signals. Ctrl-C often comes twice, from the terminal and from the launcher, and the
    second one must not end the process before it has reported the cause.
    """
    with suppress(ValueError):  # not in the main thread, which alone handles signals
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: None)  # SIG_IGN prints a warning if a signal is pending
    claim = os.environ.get(END_CLAIM)
    with suppress(FileExistsError):
        if claim:
            Path(claim).touch(exist_ok=False)
        return True
    return False


def end_by_signals() -> None:
    """Let SIGTERM and SIGINT end the stage at once, until `interrupt.install` makes it stop at safe points."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    end_now(signal.Signals(number), "while it started; the same command starts it again")


def end_now(received: signal.Signals, words: str) -> NoReturn:
    """End this process at once, without a traceback."""
    with suppress(OSError):  # stderr may be closed, and the claim's folder removed
        if first_to_end():
            os.write(2, f"stopped by {received.name} {words}\n".encode())  # the signal may have interrupted print
    os._exit(128 + received)


def end_with_dvc() -> None:
    """End the stage when `dvc repro` is killed. DVC is the parent: see `exec` in dvc.yaml."""
    # Processes of a launcher or torchrun end with their parent.
    if "DVC_STAGE" not in os.environ or END_CLAIM in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    parent = os.getppid()
    try:
        is_adopted = os.getsid(parent) != os.getsid(0)  # DVC has ended already
    except ProcessLookupError:
        is_adopted = True
    if is_adopted:
        sys.exit(128 + signal.SIGTERM)
    from cocomix.plumbing.parent import end_with_parent  # not before signals are handled: it takes milliseconds to load

    end_with_parent(parent, signal.SIGTERM)
