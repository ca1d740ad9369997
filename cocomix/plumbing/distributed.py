"""The process group of the processes that share a stage's work: gloo on CPUs, NCCL on GPUs.

The launcher (`stages.launch`, or torchrun across machines) sets RANK, WORLD_SIZE and the master's address. A single
process needs no group; then nothing here imports torch.
"""

import os
import re
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

Value = TypeVar("Value")

SIGHT_SECONDS = 120.0
"""Time until a file written by one process must be visible to the others: NFS may hide it for a minute."""
PATIENCE = timedelta(days=7)
"""A process may wait as long as another computes; the launcher notices when one has died."""

MASTER_SOCKET = "MASTER_SOCKET"
"""Descriptor of an inherited socket bound to MASTER_PORT, if there is one, so that no other program takes the port."""

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", MASTER_SOCKET)

_REMEDY = "torchrun sets it; to run without torchrun, unset RANK and WORLD_SIZE"


class LostError(UserError):
    """The connection to another process is lost; the launcher reports the cause."""


def check_variables() -> None:
    """Check that torchrun's variables, if set, define this process's rank and the world size.

    Raises:
        UserError: when one is missing or wrong.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        stand_alone()
        return
    size = _number("WORLD_SIZE", least=1)
    _number("RANK", most=size - 1)
    local = _number("LOCAL_WORLD_SIZE", least=1, most=size) if "LOCAL_WORLD_SIZE" in os.environ else size
    if "LOCAL_RANK" in os.environ:
        _number("LOCAL_RANK", most=local - 1)
    if size > 1:
        _number("MASTER_PORT", least=1, most=65535)
        if not os.environ.get("MASTER_ADDR"):
            raise UserError(f"MASTER_ADDR: must be the address of the machine of RANK 0; {_REMEDY}")


def stand_alone() -> None:
    """Unset torchrun's variables, for programs that do not share work: libraries read them too."""
    for each in VARIABLES:
        os.environ.pop(each, None)


def _number(variable: str, least: int = 0, most: int | None = None) -> int:
    text = os.environ.get(variable, "")
    value = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        given = repr(text) if variable in os.environ else "missing"
        raise UserError(f"{variable}: {given}: must be a whole number, {allowed}; {_REMEDY}")
    return value


def join() -> None:
    """Join the process group, which `torch.distributed` and DistributedDataParallel need; a single process has none.

    The group is never destroyed, so each of several processes must end by `os._exit`. Torch destroys a group while it
    holds the GIL, and waits for a gloo thread that may be waiting for the GIL (docs/log.md, 10).

    Raises:
        UserError: when the processes cannot connect.
    """
    rank, size = runtime().rank, runtime().world_size
    if size == 1:
        return
    import torch
    from torch import distributed

    from cocomix.plumbing.device import device

    if device().type == "cuda":
        torch.cuda.set_device(device())
    store = _meet(rank, size)
    backend = "cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:  # such as a network interface that does not exist
        words = " ".join(str(error).split("\n")[0].split())
        kind = LostError if is_broken_connection(error) else UserError
        raise kind(f"RANK {rank} cannot join the other processes: {words}") from None


def is_broken_connection(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    gone = "Connection (closed|reset) by peer|Broken pipe"
    return isinstance(error, RuntimeError) and re.search(gone, str(error)) is not None


def _meet(rank: int, size: int) -> "Store":
    """Wait until all processes have connected to the store of rank 0, or to torchrun's."""
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # missing in torch's __all__
    from torch.distributed.distributed_c10d import PrefixStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    wait = _Wait(f"at {host}:{port}")
    is_host = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listener = _listener(host, port) if is_host else None
    while not is_host and not _answers(host, port):
        wait.again(f"RANK {rank} of {size} waits for RANK 0, which does not answer")
    try:
        store = PrefixStore(
            "cocomix",
            TCPStore(
                host,
                port,
                is_master=is_host,
                wait_for_workers=False,
                timeout=timedelta(seconds=30),
                master_listen_fd=listener,
            ),
        )
        if store.compare_set("size", "", str(size)) != str(size).encode():
            raise UserError(f"WORLD_SIZE: {size}: RANK 0 at {host}:{port} says {store.get('size').decode()}")
        if store.add(f"rank {rank}", 1) > 1:
            raise UserError(f"RANK: {rank}: another process is RANK {rank} already at {host}:{port}")
        store.add("there", 1)
        while (there := store.add("there", 0)) < size:
            if rank == 0:
                missing = [str(each) for each in range(size) if not store.check([f"rank {each}"])]
                wait.again(f"{there} of {size} processes are there; waiting for RANK {', '.join(missing[:8])}")
            else:
                wait.again(None)
    except DistError as error:
        if is_host:
            raise UserError(f"MASTER_ADDR, MASTER_PORT: {host}:{port}: {str(error).splitlines()[0]}") from None
        raise LostError(f"RANK {rank}: {host}:{port} answers no longer, where RANK 0 should be") from None
    store.set_timeout(PATIENCE)
    return store


def _listener(host: str, port: int) -> int:
    """A bound socket for the store; it listens only on loopback if the address is loopback."""
    if inherited := os.environ.get(MASTER_SOCKET):
        return int(inherited)
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address if ip_address(address[0]).is_loopback else ("", port))
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR, MASTER_PORT: {host}:{port}: RANK 0 cannot listen there ({error.strerror})"
        ) from None
    return bound.detach()


def _answers(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


class _Wait:
    """Waiting for other processes; reports after `log_seconds`, then at doubling intervals."""

    def __init__(self, where: str) -> None:
        self._where, self._started, self._after = where, time.monotonic(), runtime().log_seconds

    def again(self, what: str | None) -> None:
        """Sleep briefly; report `what` is awaited when it is time, unless another process reports it (None)."""
        if what and time.monotonic() - self._started > self._after:
            print(f"{what} {self._where}", file=sys.stderr, flush=True)
            self._after *= 2
        time.sleep(0.05)


def maximum(value: int) -> int:
    """The largest `value` of all processes, all of which must call; reduced on the CPU to avoid a GPU sync."""
    if runtime().world_size == 1:
        return value
    import torch
    from torch import distributed

    shared = torch.tensor(value)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return int(shared)


def agree(value: int) -> bool:
    """Whether all processes, all of which must call, have the same `value`."""
    return maximum(value) == -maximum(-value)


def totals(*values: float) -> list[float]:
    """Each value summed over the processes, all of which must call; on the CPU, in float64."""
    if runtime().world_size == 1 or not values:
        return list(values)
    import torch
    from torch import distributed

    shared = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(shared)
    return shared.tolist()


def average(*tensors: "Tensor") -> "Tensor":
    """Replace each tensor by its mean over the processes, in place; all must call. Returns the first tensor."""
    if runtime().world_size > 1:
        from torch import distributed

        for each in tensors:
            distributed.all_reduce(each)
            each /= runtime().world_size
    return tensors[0]


def barrier() -> None:
    """Wait until all processes have called it."""
    maximum(0)


def from_first(value: Value) -> Value:
    """Broadcast rank 0's `value` to all processes, all of which must call; the values of the others are ignored.

    Use it for what a process finds on disk and acts on: other processes might find something else.
    """
    if runtime().world_size == 1:
        return value
    from torch import distributed

    shared: list[Any] = [value]
    distributed.broadcast_object_list(shared)
    return shared[0]  # type: ignore[no-any-return]


def gathered(value: Value) -> list[Value]:
    """The `value` of each process, by rank; all must call."""
    if runtime().world_size == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * runtime().world_size
    distributed.all_gather_object(found, value)
    return found


def see(path: Path) -> Path:
    """Wait until `path`, which another process has written, is visible to this one, and return it.

    Raises:
        UserError: when it is not visible within `SIGHT_SECONDS`.
    """
    deadline = time.monotonic() + SIGHT_SECONDS * (runtime().world_size > 1)
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(f"{path}: not seen by process {runtime().rank}; the processes must share the folder")
        time.sleep(0.1)
    return path
