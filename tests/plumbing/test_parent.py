"""Processes that do not outlive the one that started them."""

import subprocess
import sys

ADOPTED = """
import os
import signal
import time
from cocomix.plumbing.parent import end_with_parent
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.01)
end_with_parent(parent, signal.SIGTERM)
print("still here", flush=True)
"""


def test_a_child_whose_parent_has_ended_before_it_asks_ends_too() -> None:
    asked = subprocess.run([sys.executable, "-c", ADOPTED], stdout=subprocess.PIPE, text=True, check=True)
    assert asked.stdout == ""
