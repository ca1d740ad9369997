"""Runtime: how the work is done on this machine. Nothing here changes what is computed, beyond rounding, except that
dropout falls elsewhere with another micro-batch or number of processes.

Each knob is set by an environment variable `COCOMIX_<NAME>`, or in an optional, git-ignored `runtime.yaml`;
the environment wins. No knob is a parameter: changing one invalidates no artifact.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cocomix.plumbing.checked import parse, read_yaml

FILE = Path("runtime.yaml")

LOGITS = 2**27
"""Logits that an evaluation holds at once: 512 MB in fp32."""

Count = Annotated[int, Field(ge=1, le=2**16)]


def _is_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", name):
        raise ValueError("allowed: auto, cpu, mps, cuda, or cuda:N")
    return name


class Runtime(BaseModel):
    """Knobs of the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device: Annotated[str, AfterValidator(_is_device)] = "auto"
    """auto, cpu, mps, cuda or cuda:N; auto takes a GPU where there is one."""
    processes: Count | Literal["auto"] = "auto"
    """Processes of the stages that can share work; auto: one a GPU, or one a CPU core."""
    threads: Count | Literal["auto"] = "auto"
    """Threads of each process; auto: OMP_NUM_THREADS where it is set, else the cores divided by the processes."""
    workers: Count | Literal["auto"] = "auto"
    """Processes that read and clean text; auto: one a CPU core."""
    micro_batch: Count | Literal["auto"] = "auto"
    """Windows in one forward pass; auto: in training the process's share of the batch, else what is fastest."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Training arithmetic: autocast to bf16 or not; auto: bf16 where the hardware multiplies bf16."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes holds in training: ddp: the whole model and optimiser; fsdp: a share of them."""
    activation_checkpointing: bool = False
    """Compute each block twice in a training step, rather than keep what it made: less memory, more time."""
    compile: bool = False
    """torch.compile the training step."""
    tensorboard: Path | None = None
    """Folder for TensorBoard's event files, one folder a run; none: not written."""
    log_seconds: float = Field(5.0, gt=0)
    """Seconds between progress lines when the output is no terminal."""

    def at_most(self, windows: int) -> int:
        """Windows in one forward pass, where `windows` are asked for: `micro_batch`, if that is less."""
        return windows if self.micro_batch == "auto" else min(windows, self.micro_batch)

    @property
    def rank(self) -> int:
        """This process's index among those that share the work (set by torchrun)."""
        return int(os.environ.get("RANK", "0"))

    @property
    def world_size(self) -> int:
        """How many processes share the work (set by torchrun)."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def cores(self) -> int:
        """CPU cores that this process may use."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def runtime() -> Runtime:
    """The knobs of this process, read once.

    Raises:
        UserError: for an unknown knob or a wrong value, naming the variable or the file.
    """
    given: dict[str, object] = dict(read_yaml(FILE)) if FILE.exists() else {}
    where = {key: f"{FILE}: {key}" for key in given}
    for variable, text in os.environ.items():
        if variable.startswith("COCOMIX_"):
            key = variable.removeprefix("COCOMIX_").lower()
            given[key], where[key] = text, variable
    return parse(Runtime, given, str(FILE), where)
