"""Start several processes of one stage on this machine, with torchrun's environment variables.

Across machines, `torchrun --nnodes ... -m stages.NAME` does the same. On one machine this starts seconds faster (it
imports none of the stage's modules), keeps exit statuses, and prints nothing itself unless a signal ended a process.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import FrameType

from cocomix.plumbing.distributed import MASTER_SOCKET
from cocomix.plumbing.interrupt import ECHO_SECONDS
from cocomix.plumbing.lock import signs_of_life
from cocomix.plumbing.parent import end_with_parent, outlive_parent
from stages.early import END_CLAIM

GRACE_SECONDS = 30.0
"""After one process has failed, the others must stop within this time of their last sign of life."""


def launch(processes: int) -> int:
    """Run this program's command line in `processes` new processes, and wait.

    Returns:
        The exit status: 0, or that of the first process that failed (128 + the signal that ended it).
    """
    children: list[subprocess.Popen[bytes]] = []
    stops: list[float] = []

    def relay(number: int, _frame: FrameType | None) -> None:
        outlive_parent()  # the parent's death must not count as the second signal
        stops.append(time.monotonic())
        for child in children:
            child.send_signal(number)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, relay)
    with tempfile.TemporaryDirectory() as folder:
        _start(processes, Path(folder) / "claimed", children)
        if stops:  # a signal arrived before all processes were started
            relay(signal.SIGTERM, None)
        status = _wait(children, stops)
    if status < 0 and not stops:
        remedy = "; out of memory? A smaller COCOMIX_MICRO_BATCH needs less" if status == -signal.SIGKILL else ""
        print(f"error: a process was ended by {signal.Signals(-status).name}{remedy}", file=sys.stderr)
    return status if status >= 0 else 128 - status


def _start(processes: int, claim: Path, children: list[subprocess.Popen[bytes]]) -> None:
    """Start the processes, and append each to `children` immediately."""
    with socket.socket() as meeting:  # bound, so that no other program takes the port before rank 0 listens
        meeting.bind(("127.0.0.1", 0))
        shared = os.environ | {
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(meeting.getsockname()[1]),
            MASTER_SOCKET: str(meeting.fileno()),
            END_CLAIM: str(claim),
        }
        if sys.platform == "linux":
            shared.setdefault("GLOO_SOCKET_IFNAME", "lo")  # otherwise gloo must resolve the host name
        for rank in range(processes):
            child = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                pass_fds=() if rank else (meeting.fileno(),),
                preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM),  # safe: this process has no threads
            )
            children.append(child)


def _wait(children: list[subprocess.Popen[bytes]], stops: list[float]) -> int:
    """Wait for all processes; when one fails, stop the others, unless a signal was relayed already."""
    pids = {child.pid for child in children}
    first, deadline, signs = 0, float("inf"), set[tuple[int, int]]()
    while None in (statuses := [child.poll() for child in children]):
        if not first and (first := next(filter(None, statuses), 0)):
            deadline = time.monotonic() + GRACE_SECONDS
            if not stops:
                for child in children:
                    child.terminate()
        if first and (new := signs_of_life(pids.__contains__)) != signs:
            signs, deadline = new, time.monotonic() + GRACE_SECONDS
        if stops and stops[-1] - stops[0] > ECHO_SECONDS:  # a second signal kills processes that ignore it
            deadline = min(deadline, stops[-1] + ECHO_SECONDS)
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    return first or next(filter(None, statuses), 0)
