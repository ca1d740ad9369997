"""Several processes of one stage on this machine, joined as torchrun would join them.

They get torchrun's environment variables, so that across machines `torchrun --nnodes ... -m stages.NAME` does the same.
For one machine this starts 2 s faster than torchrun (it does not import torch), keeps exit statuses, and stays silent.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

from cocomix.parent import end_with_parent

GRACE_SECONDS = 30.0
"""After one process has failed, the time that the others have to stop by themselves."""

END_CLAIM = "STAGE_END_CLAIM"
"""Names a file; the process that creates it is the first to end before its time."""


def launch(processes: int) -> int:
    """Run this program's command line again, `processes` times over, and wait.

    Returns:
        The exit status: 0, or that of the first process that failed (128 + the signal that ended it).
    """
    with tempfile.TemporaryDirectory() as folder:
        children = _start(processes, Path(folder) / "claimed")
        stop: list[int] = []

        def relay(number: int, _frame: FrameType | None) -> None:
            stop.append(number)
            for child in children:
                child.send_signal(number)

        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, relay)
        status = _wait(children, stop)
    if status < 0 and not stop:
        remedy = "; out of memory? A smaller COCOMIX_MICRO_BATCH needs less" if status == -signal.SIGKILL else ""
        print(f"error: a process was ended by {signal.Signals(-status).name}{remedy}", file=sys.stderr)
    return status if status >= 0 else 128 - status


def first_to_end() -> bool:
    """Whether no other process of this job has failed, or been stopped, before: the first one says why."""
    claim = os.environ.get(END_CLAIM)
    with suppress(FileExistsError):
        if claim:
            Path(claim).touch(exist_ok=False)
        return True
    return False


def _start(processes: int, claim: Path) -> list[subprocess.Popen[bytes]]:
    shared = os.environ | {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        END_CLAIM: str(claim),
    }
    if sys.platform == "linux":
        shared.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo otherwise wants the host name to resolve
    return [
        subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM),  # safe: this process has no threads
        )
        for rank in range(processes)
    ]


def _wait(children: list[subprocess.Popen[bytes]], stop: list[int]) -> int:
    """Wait for all; when one fails, stop the others, unless they have been told already."""
    first, deadline = 0, float("inf")
    while None in (statuses := [child.poll() for child in children]):
        if not first and (first := next(filter(None, statuses), 0)):
            deadline = time.monotonic() + GRACE_SECONDS
            if not stop:
                for child in children:
                    child.terminate()
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    return first or next(filter(None, statuses), 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
