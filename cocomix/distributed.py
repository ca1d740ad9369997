"""Processes that share the work of a stage, joined into one group: gloo on CPUs, NCCL on GPUs.

Whoever starts them (`stages.launch`, or torchrun across machines) sets RANK, WORLD_SIZE and the address to meet at.
A process alone needs no group, and then nothing here imports torch.
"""

from datetime import timedelta
from typing import TYPE_CHECKING

from cocomix.runtime import runtime

if TYPE_CHECKING:
    from torch import Tensor

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


def agree(value: int) -> bool:
    """Whether all processes, all of which must ask, have the same `value`."""
    return maximum(value) == -maximum(-value)


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
