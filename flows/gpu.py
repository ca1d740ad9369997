"""GPUs of this machine, and mutual exclusion on them among all runs that share a Prefect server."""

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from threading import Event

from prefect import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists

from cocomix.plumbing.runtime import runtime
from flows.reproduce import Stopped

VISIBLE = "CUDA_VISIBLE_DEVICES"
LEASE_SECONDS = 60.0
"""Time after which the server releases a GPU when the process that held it has died."""
WAIT_SECONDS = 10.0
"""Time to wait for GPUs between two looks at whether to stop."""
DEV = Path("/dev")


def gpus() -> tuple[str, ...]:
    """The GPUs that stages may use, as CUDA_VISIBLE_DEVICES names them; empty: none."""
    device = runtime().device
    if device in ("cpu", "mps"):
        return ()
    found = [each for each in DEV.glob("nvidia*") if re.fullmatch("nvidia[0-9]+", each.name)]
    if not found and not (DEV / "kfd").exists():
        return ()

    def is_gpu(name: str) -> bool:
        if re.fullmatch("[0-9]+", name):
            return not found or int(name) < len(found)  # AMD's driver has one file for all GPUs
        return re.match("(GPU|MIG)-.", name) is not None

    names = [str(each) for each in range(len(found) or 1)]
    if (visible := os.environ.get(VISIBLE)) is not None:
        # CUDA ignores the first name that it rejects, such as -1, and all names after it.
        names = list(takewhile(is_gpu, map(str.strip, visible.split(","))))
    if ":" in device:  # cuda:N counts in the visible ones
        number = int(device.partition(":")[2])
        names = names[number : number + 1]
    return tuple(names)


@contextmanager
def hold(names: Sequence[str], end: Event) -> Iterator[None]:
    """Hold GPUs: a slot of the global concurrency limit `gpu-<host>-<name>` of each, made with one slot.

    Raises:
        Stopped: when `end` is set while others hold them.
    """
    # Names of limits have no slash; MIG-GPU-<id>/1/0, as older drivers name a part of a GPU, has.
    limits = [f"gpu-{socket.gethostname()}-{each}".replace("/", "-") for each in names]
    with get_client(sync_client=True) as client:
        for limit in limits:
            with suppress(ObjectAlreadyExists):
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=limit, limit=1))
    with ExitStack() as held:
        while not end.is_set():
            # A temporary outage of the server must not end the stage that holds a slot.
            slots = concurrency(
                limits,
                strict=True,
                timeout_seconds=WAIT_SECONDS,
                lease_duration=LEASE_SECONDS,
                raise_on_lease_renewal_failure=False,
            )
            with suppress(TimeoutError):
                held.enter_context(slots)
                break
        else:
            raise Stopped
        yield
