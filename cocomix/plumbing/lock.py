"""The lock of a stage's work folder. It tells other processes who holds it and whether the holder is stopping.

The lock file holds the process id, followed by `stopping` once a signal has arrived. While the holder then saves its
work, it touches the file; a process that would kill it waits as long as the file keeps changing.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

file_lock = partial(FileLock, fallback_to_soft=False)
"""Lock by flock only: the kernel releases it however the process ends."""
ROOT = Path("artifacts/.work")


class HeldError(Exception):
    """Another process holds the lock."""

    def __init__(self, content: str) -> None:
        super().__init__(content)
        self.holder, _, state = content.strip().partition(" ")
        self.is_stopping = state == "stopping"


class Lock:
    """A lock file, held until `close` or the end of the process.

    Raises:
        HeldError: when another process holds it.
    """

    def __init__(self, path: Path) -> None:
        global _held
        self._path, self._lock = path, file_lock(path)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise HeldError(path.read_text()) from None
        path.write_text(str(os.getpid()))
        _held = self

    def close(self) -> None:
        """Release the lock."""
        global _held
        self._lock.release()
        _held = None

    def mark_stopping(self) -> None:
        """Record that a signal has arrived, so that others wait for this process."""
        self._path.write_text(f"{os.getpid()} stopping")

    def touch(self) -> None:
        """Record that this process is alive."""
        os.utime(self._path)


_held: Lock | None = None


def held() -> Lock | None:
    """The lock that this process holds, or None."""
    return _held


def signs_of_life(belongs: Callable[[int], bool], root: Path = ROOT) -> set[tuple[int, int]]:
    """Process ids and last signs of life of stopping processes; the set changes while one of them is saving.

    Args:
        belongs: whether to include a process, by its id.

    Returns:
        (process id, modification time of its lock file in nanoseconds).
    """
    signs = set()
    for path in root.glob("*/lock"):
        with suppress(OSError, ValueError):  # the file was just removed, or is being written
            process, _, state = path.read_text().partition(" ")
            if state == "stopping" and belongs(int(process)):
                signs.add((int(process), path.stat().st_mtime_ns))
    return signs
