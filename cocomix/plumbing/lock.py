"""The lock of a stage's work folder, by which others see who is at work, that it is stopping, and that it still lives.

Its file holds the process id, and `stopping` behind it once a signal has come. While the process writes its checkpoint
then, however long that takes, it touches the file: whoever would end it waits as long as that goes on.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

file_lock = partial(FileLock, fallback_to_soft=False)
"""By flock, which the kernel releases when the process ends, however it ends; nothing else would be."""
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
        """Let others have it."""
        global _held
        self._lock.release()
        _held = None

    def mark_stopping(self) -> None:
        """Say that a signal has come, so that others wait for this process."""
        self._path.write_text(f"{os.getpid()} stopping")

    def touch(self) -> None:
        """Say that this process lives."""
        os.utime(self._path)


_held: Lock | None = None


def held() -> Lock | None:
    """The lock that this process holds."""
    return _held


def signs_of_life(belongs: Callable[[int], bool], root: Path = ROOT) -> set[tuple[int, int]]:
    """What stopping processes have last shown: it changes as long as one of them is saving.

    Args:
        belongs: whether a process is one of those to look at.

    Returns:
        Process ids, and times in nanoseconds, by whatever clock the file system has.
    """
    signs = set()
    for path in root.glob("*/lock"):
        with suppress(OSError, ValueError):  # just removed; another process is just writing it
            process, _, state = path.read_text().partition(" ")
            if state == "stopping" and belongs(int(process)):
                signs.add((int(process), path.stat().st_mtime_ns))
    return signs
