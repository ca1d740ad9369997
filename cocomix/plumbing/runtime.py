"""Runtime settings: how work runs on this machine. They change results only by rounding.

An exception is dropout, whose masks depend on the micro-batch and the number of processes.

Each setting is an environment variable `COCOMIX_<NAME>`, or a key of an optional, git-ignored `runtime.yaml`;
the environment wins. No setting is a parameter: changing one invalidates no artifact.
"""

import math
import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cocomix.plumbing.checked import parse, read_yaml

FILE = Path("runtime.yaml")

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time in each period, or `max`, and the period; Kubernetes sets it from `limits.cpu`."""

LOGITS = 2**27
"""Maximum logits in memory during an evaluation on a CPU or a small GPU: 512 MB in fp32."""

Count = Annotated[int, Field(ge=1, le=2**16)]


def _is_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", name):
        raise ValueError("allowed: auto, cpu, mps, cuda, or cuda:N")
    return name


class Runtime(BaseModel):
    """Settings of the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device: Annotated[str, AfterValidator(_is_device)] = "auto"
    """auto, cpu, mps, cuda or cuda:N; auto: a GPU if there is one."""
    trainings: Count = 1
    """Trainings and evaluations that a flow runs at a time, each with a share of the cores or of the GPUs."""
    processes: Count | Literal["auto"] = "auto"
    """Processes of the stages that can share work; auto: one per GPU, or one per CPU core, at most one per window of a
    training step or of its evaluation."""
    threads: Count | Literal["auto"] = "auto"
    """Threads of each process; auto: OMP_NUM_THREADS if set, else the cores divided by the processes."""
    workers: Count | Literal["auto"] = "auto"
    """Processes that read and clean text; auto: the cores divided by the stage's processes on this machine."""
    micro_batch: Count | Literal["auto"] = "auto"
    """Windows per forward pass; auto: in training the process's share of the batch, else the fastest size."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of training: fp32, or autocast to bf16; auto: bf16 if the hardware multiplies it faster."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """What each of several training processes holds; ddp: the whole model and optimiser; fsdp: a shard of them."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass instead of keeping them: less memory, more time."""
    compile: bool = False
    """Whether to torch.compile the training step."""
    tensorboard: Path | None = None
    """Folder for TensorBoard event files, one subfolder per run; None: none are written."""
    log_seconds: float = Field(5.0, gt=0)
    """Seconds between progress lines when the output is not a terminal."""

    def at_most(self, windows: int) -> int:
        """Windows per forward pass: the smaller of `windows` and `micro_batch`."""
        return windows if self.micro_batch == "auto" else min(windows, self.micro_batch)

    @property
    def rank(self) -> int:
        """Rank of this process (set by torchrun)."""
        return int(os.environ.get("RANK", "0"))

    @property
    def world_size(self) -> int:
        """Number of processes that share the work (set by torchrun)."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def cores(self) -> int:
        """CPU cores that this process may use, also by the quota of its container."""
        found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if CPU_QUOTA.exists():  # Linux, cgroup v2
            quota, period = CPU_QUOTA.read_text().split()
            if quota != "max":
                found = min(found, math.ceil(int(quota) / int(period)))
        return found


@cache
def runtime() -> Runtime:
    """The runtime settings of this process, read once.

    Raises:
        UserError: for an unknown setting or a wrong value, naming the variable or the file.
    """
    given: dict[str, object] = dict(read_yaml(FILE)) if FILE.exists() else {}
    where = {key: f"{FILE}: {key}" for key in given}
    for variable, text in os.environ.items():
        if variable.startswith("COCOMIX_"):
            key = variable.removeprefix("COCOMIX_").lower()
            given[key], where[key] = text, variable
    return parse(Runtime, given, str(FILE), where)
