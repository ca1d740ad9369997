"""End a command after Ctrl-C, SIGTERM or a closed terminal: within seconds, with one line and the shell's status."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
QUIET = "STARTED_BY"
"""Environment variable with the id of the process that prints the line in place of its children."""
PATIENCE_SECONDS = 15.0
"""Time, after the running stage has ended, to clean up and to report to a server."""

_ending: tuple[str, int] | None = None
"""The final line and the exit status, once this process is ending."""
_interrupted = False


def end_at_once() -> None:
    """Let signals end this process at once, while there is nothing to clean up."""
    _handle(leave)


@contextmanager
def end_in_order() -> Iterator[None]:
    """A context in which the first signal raises KeyboardInterrupt, later ones are ignored, and then the process exits.

    During a flow, Prefect installs its own SIGTERM handler, which raises another exception and calls this one.
    """
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        _handle(_interrupt)
        yield
    except BaseException:
        if not _ending:
            raise
    finally:
        if not _ending:
            for each, handler in before.items():
                signal.signal(each, handler)
    if _ending:
        _say(_ending[0])
        sys.exit(_ending[1])


def end_because(line: str) -> None:
    """End this process with status 1, as a signal would; callable from any thread."""
    _end(line, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def bound(wait_for_work: Callable[[], None]) -> None:
    """Ensure that this process ends some seconds after a signal, whatever the main thread is waiting for.

    Args:
        wait_for_work: returns when no stage runs; a stage has its own time to stop.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)  # also receives signals with another handler

    def watch() -> None:
        while (number := os.read(read, 1)[0]) not in SIGNALS:
            pass
        line, status = _end(*_of(number))  # Prefect's handler calls ours only after the flow
        wait_for_work()
        time.sleep(PATIENCE_SECONDS)
        _say(line)
        os._exit(status)

    Thread(target=watch, daemon=True).start()


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for each in SIGNALS:
        if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN:  # nohup
            signal.signal(each, handler)


def leave(number: int, _frame: FrameType | None = None) -> NoReturn:
    """Print the signal that ends this process, and end it."""
    _handle(lambda *_: None)  # the terminal and the parent may both send one, and one line is enough
    line, status = _of(number)
    _say(line)
    os._exit(status)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    global _interrupted
    _end(*_of(number))
    if not _interrupted:
        _interrupted = True
        raise KeyboardInterrupt


def _end(line: str, status: int) -> tuple[str, int]:
    """Note the end of this process, unless one is noted; the noted one."""
    global _ending
    _ending = _ending or (line, status)
    logging.disable()  # one line is enough
    return _ending


def _of(number: int) -> tuple[str, int]:
    return f"stopped by {signal.Signals(number).name}", 128 + number


def _say(line: str) -> None:
    if os.environ.get(QUIET) != str(os.getppid()):
        with suppress(OSError):  # a terminal that is closed
            os.write(sys.stderr.fileno(), f"{line}\n".encode())
