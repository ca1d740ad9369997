"""Signals that ask a process to stop."""

import subprocess
import sys

import pytest

SLOW_DISK = """
import signal, time
from cocomix.plumbing import interrupt, lock

class Lock:
    def mark_stopping(self):
        time.sleep(interrupt.ECHO_SECONDS + 0.1)
        signal.raise_signal(signal.{echo})

lock.held = Lock
interrupt.install()
signal.raise_signal(signal.SIGTERM)
print(interrupt.received().name)
"""


@pytest.mark.parametrize("echo", ["SIGTERM", "SIGINT"])
def test_an_echo_that_comes_while_the_first_signal_is_handled_ends_nothing(echo: str) -> None:
    done = subprocess.run([sys.executable, "-c", SLOW_DISK.format(echo=echo)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "SIGTERM\n"), done.stderr
