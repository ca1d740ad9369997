"""Faults inside a process: what happens at its n-th change of the disk.

Python announces changes of files to audit hooks before it makes them. So a process can be killed between any two of
them, or be told that the disk is full, without a hook in the program under test. A hook cannot be taken off again:
faults are for forked children.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "open"}


class Fault:
    """At the `at`-th change below `folder`, counted from 1, `happen`."""

    def __init__(self, folder: Path, at: int, happen: Callable[[], None]) -> None:
        self.count = 0
        self._folder, self._at, self._happen = str(folder.resolve()), at, happen

    def install(self) -> "Fault":
        sys.addaudithook(self._see)
        return self

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_APPEND):
            return
        if os.path.abspath(arguments[0]).startswith(self._folder):
            self.count += 1
            if self.count == self._at:
                self._happen()


def killed() -> None:
    """Loss of the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full() -> None:
    """As the system says it."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def changes_in(work: Callable[[], None], folder: Path) -> int:
    """How many changes below `folder` an undisturbed run of `work` makes, in a child; it must succeed."""
    read, write = os.pipe()

    def count() -> None:
        fault = Fault(folder, 0, lambda: None).install()
        work()
        os.write(write, str(fault.count).encode())

    status = in_child(count)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert status == 0
        return int(pipe.read())


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process: 0, 1 after an exception, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
