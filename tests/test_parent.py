"""Processes that do not outlive the one that started them."""

import subprocess
import sys
import time

import psutil

SCRIPT = """
import subprocess
from cocomix.parent import end_with_this_process
child = subprocess.Popen(["sleep", "600"])
end_with_this_process(child.pid)
print(child.pid, flush=True)
child.wait()
"""


ADOPTED = """
import os
import signal
import time
from cocomix.parent import end_with_parent
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


def test_a_child_ends_with_the_process_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = psutil.Process(int(process.stdout.readline()))
        time.sleep(0.5)
        assert child.is_running()
        process.kill()
    child.wait(60)
    assert not child.is_running()
