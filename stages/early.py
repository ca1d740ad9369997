"""What a stage does before its imports, which take seconds: it ends with DVC, and by a signal in one line."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cocomix.plumbing.parent import end_with_parent

END_CLAIM = "STAGE_END_CLAIM"
"""Names a file; the process that creates it is the first to end before its time."""


def first_to_end() -> bool:
    """Whether no other process of this job has failed, or been stopped, before: the first one says why."""
    claim = os.environ.get(END_CLAIM)
    with suppress(FileExistsError):
        if claim:
            Path(claim).touch(exist_ok=False)
        return True
    return False


def end_by_signals() -> None:
    """Until a stage notes signals, to obey them at safe points, they end it at once."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    end_now(signal.Signals(number), "while it started; the same command starts it again")


def end_now(received: signal.Signals, words: str) -> NoReturn:
    """End this process, without a traceback of whatever it is at."""
    with suppress(OSError):  # no stderr; and its folder may be gone
        if first_to_end():
            os.write(2, f"stopped by {received.name} {words}\n".encode())  # print may be what was interrupted
    os._exit(128 + received)


def end_with_dvc() -> None:
    """A killed `dvc repro` must not leave its stage running. DVC is the parent: see `exec` in dvc.yaml."""
    # Processes that a launcher or torchrun has started end with those.
    if "DVC_STAGE" not in os.environ or END_CLAIM in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    parent = os.getppid()
    try:
        is_adopted = os.getsid(parent) != os.getsid(0)  # DVC ended before this line
    except ProcessLookupError:
        is_adopted = True
    if is_adopted:
        sys.exit(128 + signal.SIGTERM)
    end_with_parent(parent, signal.SIGTERM)
