"""Progress of long work: a bar on a terminal, a plain line every few seconds anywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from cocomix import interrupt
from cocomix.runtime import runtime


class Progress:
    """One long task. `advance` is also where the process obeys SIGTERM and SIGINT.

    Rate and time left count only what this process has done: work found finished after a restart
    is passed as `done` and moves the bar without flattering the rate.
    """

    def __init__(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        self._bar = tqdm(
            desc=task,
            total=total,
            unit=f" {unit}",
            unit_scale=True,
            initial=done,
            dynamic_ncols=True,
            disable=runtime().rank != 0,
            # Off a terminal, tqdm keeps the counts and the formatting, and _line() prints whole lines.
            file=sys.stderr if sys.stderr.isatty() else _Nowhere(),
            mininterval=0.2,
        )
        self._lines = not sys.stderr.isatty() and runtime().rank == 0
        self._next_line = time.monotonic() + runtime().log_seconds

    def advance(self, amount: int, **shown: float | str) -> None:
        """Count `amount` more units; `shown` are figures to print, such as the loss.

        Raises:
            Interrupted: when a stop was asked for.
        """
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(amount)
        if self._lines and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + runtime().log_seconds
            self._line()
        interrupt.check()

    def close(self) -> None:
        """Leave the finished bar (or a last line) behind."""
        self._bar.close()
        if self._lines:
            self._line()

    def _line(self) -> None:
        figures = self._bar.format_dict | {"ncols": None, "bar_format": None}
        print(tqdm.format_meter(**(figures | {"ascii": True, "ncols": 0})), file=sys.stderr, flush=True)


class _Nowhere:
    def write(self, _text: str) -> None: ...
    def flush(self) -> None: ...


@contextmanager
def progress(task: str, total: int | None, unit: str, done: int = 0) -> Iterator[Progress]:
    """A `Progress` that is closed at the end, also after an error."""
    bar = Progress(task, total, unit, done)
    try:
        yield bar
    finally:
        bar.close()


def say(text: str) -> None:
    """One line to the person who watches, once in a job of several processes."""
    if runtime().rank == 0:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()
