"""The device and arithmetic of tensors: the settings of `runtime()`, resolved on this machine."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from cocomix.plumbing.errors import UserError
from cocomix.plumbing.gpus import gpu_named
from cocomix.plumbing.runtime import LOGITS, runtime

CPU_INFO = Path("/proc/cpuinfo")
"""Linux's description of the processors."""


def device() -> torch.device:
    """The device of this process, from `runtime().device`; each of several processes uses its own GPU.

    A GPU that is asked for by its number becomes torch's current one: pinned memory, kernels of torch.compile, and what
    torch says of memory and of the GPU itself belong to that.

    Raises:
        UserError: when the requested device is not available.
    """
    name = runtime().device
    gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    chosen = torch.device(name)
    if chosen.type == "cuda" and chosen.index is None and gpus:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % gpus)
    there = {"cpu": True, "mps": torch.backends.mps.is_available(), "cuda": (chosen.index or 0) < gpus}
    if not there[chosen.type]:
        raise UserError(f"device: torch {torch.__version__} finds no {name} on this machine; try auto or cpu")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def bf16() -> bool:
    """Whether matrix products use bf16, from `runtime().precision`; auto: if the hardware has fast instructions."""
    if runtime().precision != "auto":
        return runtime().precision == "bf16"
    match device().type:
        case "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            # oneDNN's own check is also true where bf16 is emulated, which is slower than fp32. So are the instructions
            # of Intel's AVX512, but not those of AMX, or of AMD's AVX512 (docs/log.md, 83).
            amx, avx512 = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
            return bool(amx) or (bool(avx512) and not _is_intel(CPU_INFO))
        case _:
            return False


@cache
def _is_intel(info: Path) -> bool:
    return info.exists() and "GenuineIntel" in info.read_text()


def autocast() -> AbstractContextManager[object]:
    """A context in which matrix products run in bf16 if `bf16()`; sums, norms and losses stay fp32."""
    return torch.autocast(device().type, torch.bfloat16) if bf16() else nullcontext()


def no_autocast() -> AbstractContextManager[object]:
    """A context in which matrix products run in the dtype of their factors, also inside `autocast`."""
    return torch.autocast(device().type, enabled=False)


@contextmanager
def tf32() -> Iterator[None]:
    """A context in which fp32 matrix products on a GPU use TF32, unless `precision` is fp32."""
    before = torch.get_float32_matmul_precision()
    if device().type == "cuda" and runtime().precision != "fp32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def send(tensor: Tensor) -> Tensor:
    """Copy `tensor` to the device; to a GPU, asynchronously."""
    if device().type == "cuda":
        return tensor.pin_memory().to(device(), non_blocking=True)
    return tensor.to(device())


def peak_memory() -> int:
    """Peak memory of this process in bytes: on a GPU, of its tensors there; otherwise, resident memory."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_flops() -> float | None:
    """The device's peak floating-point operations per second in bf16; None: unknown, or not in bf16."""
    if device().type != "cuda" or not bf16():
        return None
    gpu = gpu_named(torch.cuda.get_device_name())
    return gpu.peak if gpu else None


def most_logits() -> int:
    """Maximum logits in memory during an evaluation: `LOGITS`; on a GPU at least what fills a sixteenth of it in fp32.

    The losses take two or three tensors of this size.
    """
    if device().type != "cuda":
        return LOGITS
    return max(LOGITS, torch.cuda.get_device_properties(device()).total_memory // (16 * 4))


def attention(context: int) -> str:
    """The attention implementation for training and evaluation, by its name in transformers.

    On a CPU with a short context it is `eager`, whose backward pass is faster there (docs/log.md).
    """
    return "eager" if device().type == "cpu" and context <= 512 else "sdpa"
