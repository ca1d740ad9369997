"""Processes that share the work of a stage, joined into one group: gloo on CPUs, NCCL on GPUs.

Whoever starts them (`stages.launch`, or torchrun across machines) sets RANK, WORLD_SIZE and the address to meet at.
A process alone needs no group, and then nothing here imports torch.
"""

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cocomix.errors import UserError
from cocomix.runtime import runtime

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")

SIGHT_SECONDS = 120.0
"""Within which a file that one process has written must be seen by the others: NFS may hide it for a minute."""
PATIENCE = timedelta(days=7)
"""A process may wait for as long as another computes. That one has died is noticed by who started them."""


def join() -> None:
    """Join the other processes; then `torch.distributed` and DistributedDataParallel work. Alone: does nothing.

    The group is never left: among several, a process must end by `os._exit`. Torch takes a group down while it holds
    Python's lock, and waits for a thread of gloo's that may be waiting for that lock (docs/log.md, 10).
    """
    if runtime().world_size == 1:
        return
    import torch
    from torch import distributed

    from cocomix.device import device

    if device().type == "cuda":
        torch.cuda.set_device(device())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo", timeout=PATIENCE)


def maximum(value: int) -> int:
    """The largest `value` among the processes, all of which must ask; over the CPU, so that no GPU is waited for."""
    if runtime().world_size == 1:
        return value
    import torch
    from torch import distributed

    shared = torch.tensor(value)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return int(shared)


def totals(*values: float) -> list[float]:
    """Each value summed over the processes, all of which must ask; over the CPU, in float64."""
    if runtime().world_size == 1:
        return list(values)
    import torch
    from torch import distributed

    shared = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(shared)
    return shared.tolist()


def average(*tensors: "Tensor") -> "Tensor":
    """Each tensor is made its mean over the processes, in place, where it is; all must ask. Returns the first one."""
    if runtime().world_size > 1:
        from torch import distributed

        for each in tensors:
            distributed.all_reduce(each)
            each /= runtime().world_size
    return tensors[0]


def barrier() -> None:
    """Wait until all processes have come here."""
    maximum(0)


def told(value: Value) -> Value:
    """The first process's `value`, in all of them; all must ask, and what the others pass is not looked at.

    For what a process finds on the disk and then acts on: each for itself might find something else.
    """
    if runtime().world_size == 1:
        return value
    from torch import distributed

    shared: list[Any] = [value]
    distributed.broadcast_object_list(shared)
    return shared[0]  # type: ignore[no-any-return]


def gathered(value: Value) -> list[Value]:
    """The `value` of each process, all of which must ask, in their order."""
    if runtime().world_size == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * runtime().world_size
    distributed.all_gather_object(found, value)
    return found


def see(path: Path) -> Path:
    """`path`, which another process has written, once this one sees it.

    Raises:
        UserError: when it does not in `SIGHT_SECONDS`.
    """
    deadline = time.monotonic() + SIGHT_SECONDS * (runtime().world_size > 1)
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(f"{path}: not seen by process {runtime().rank}; the processes must share the folder")
        time.sleep(0.1)
    return path
