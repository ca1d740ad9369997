"""Progress of long work: a bar on a terminal, else a plain line every few seconds."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals

from tqdm import tqdm

from cocomix.plumbing import distributed, interrupt
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.runtime import runtime

tqdm.monitor_interval = 0  # no monitor thread: stages fork


class Progress:
    """Progress of one long task, shown by rank 0; `advance` obeys SIGTERM and SIGINT in every process.

    Rate and time left count only the work of this process: units that were finished before a restart are passed as
    `done` and do not raise the rate.

    Args:
        task: description.
        total: number of units; None: unknown.
        unit: name of the units, in the plural.
        done: units that an earlier process finished.
        lockstep: whether the processes advance together (training steps) and therefore stop together; otherwise
            each stops by itself (shards).
    """

    def __init__(self, task: str, total: int | None, unit: str, done: int = 0, *, lockstep: bool = False) -> None:
        on_terminal = sys.stderr.isatty()
        interrupt.begin()
        self._lockstep = lockstep
        self._lines = runtime().rank == 0 and not on_terminal
        self._next_line = time.monotonic() + runtime().log_seconds
        self._bar = tqdm(
            desc=task,
            total=total,
            unit=f" {unit}",
            unit_scale=total is None or total >= 100_000,
            initial=done,
            dynamic_ncols=True,
            miniters=1,
            disable=runtime().rank != 0,
            # Without a terminal, tqdm only counts and formats, and _line() prints whole lines.
            file=sys.stderr if on_terminal else _Nowhere(),
        )
        self._bar._time = time.monotonic  # type: ignore[attr-defined]  # tqdm's own clock may be set back
        self._bar.start_t = self._bar.last_print_t = time.monotonic()

    def advance(self, amount: int, **shown: float | str) -> None:
        """Count `amount` more units; `shown` are values to display, such as the loss.

        Raises:
            Interrupted: after a stop signal; with `lockstep`, in all processes at the same unit.
        """
        interrupt.alive()
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(amount)
        if self._lines and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + runtime().log_seconds
            self._line()
        stop = interrupt.received() or 0
        if stop := distributed.maximum(stop) if self._lockstep else stop:
            raise Interrupted(Signals(stop))

    def close(self) -> None:
        """Leave the finished bar, or print a last line."""
        self._bar.close()
        if self._lines:
            self._line()

    def _line(self) -> None:
        print(tqdm.format_meter(**{**self._bar.format_dict, "ascii": True, "ncols": 0}), file=sys.stderr, flush=True)


class _Nowhere:
    def write(self, _text: str) -> None: ...
    def flush(self) -> None: ...


@contextmanager
def progress(task: str, total: int | None, unit: str, done: int = 0, *, lockstep: bool = False) -> Iterator[Progress]:
    """A `Progress` that is closed at the end, also after an error."""
    bar = Progress(task, total, unit, done, lockstep=lockstep)
    try:
        yield bar
    finally:
        bar.close()


def say(text: str) -> None:
    """Print one line to stderr, from rank 0 only, without breaking the progress bar."""
    if runtime().rank == 0:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()
