"""Mutual exclusion of stages on a machine's GPU, among all runs that share a Prefect server."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists

from cocomix.plumbing.runtime import runtime

LEASE_SECONDS = 60.0
"""Time after which the server releases the GPU when the process that held it has died."""


def has_gpu() -> bool:
    """Whether this machine has a GPU that stages may use."""
    driver = any(Path(each).exists() for each in ("/dev/nvidiactl", "/dev/kfd"))
    return driver and runtime().device not in ("cpu", "mps")


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold a slot of the global concurrency limit `gpu-<host>`, created with one slot if it does not exist."""
    limit = f"gpu-{socket.gethostname()}"
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=limit, limit=1))
    # A temporary outage of the server must not end the stage that holds the slot.
    with concurrency(limit, strict=True, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False):
        yield
