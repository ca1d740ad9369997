"""Where tensors live, and in which arithmetic: what `runtime()` asks for, resolved on this machine."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from cocomix.plumbing.errors import UserError
from cocomix.plumbing.gpus import gpu_named
from cocomix.plumbing.runtime import runtime


def device() -> torch.device:
    """The device of this process: `runtime().device`; among several processes each takes its own GPU.

    Raises:
        UserError: when the device that was asked for is not there.
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
    return chosen


def bf16() -> bool:
    """Whether to multiply in bf16: `runtime().precision`; auto: where the hardware has instructions for it."""
    if runtime().precision != "auto":
        return runtime().precision == "bf16"
    match device().type:
        case "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            # Not oneDNN's own check, which is also true where bf16 is emulated, slower than fp32.
            return bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())
        case _:
            return False


def autocast() -> AbstractContextManager[object]:
    """A context in which matrix products are bf16 where `bf16()`, and sums, norms and losses stay fp32."""
    return torch.autocast(device().type, torch.bfloat16) if bf16() else nullcontext()


def no_autocast() -> AbstractContextManager[object]:
    """A context in which matrix products are in the type of their factors, also inside `autocast`."""
    return torch.autocast(device().type, enabled=False)


@contextmanager
def tf32() -> Iterator[None]:
    """A context in which fp32 matrix products on a GPU use TF32, unless fp32 was asked for."""
    before = torch.get_float32_matmul_precision()
    if device().type == "cuda" and runtime().precision != "fp32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def send(tensor: Tensor) -> Tensor:
    """`tensor` on the device; a GPU takes it while it computes."""
    if device().type == "cuda":
        return tensor.pin_memory().to(device(), non_blocking=True)
    return tensor.to(device())


def peak_memory() -> int:
    """The most memory that this process has held, in bytes: a GPU's, of its tensors; else the process's own."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_flops() -> float | None:
    """Floating-point operations a second that the device reaches at most in bf16; None: not known, or not in bf16."""
    if device().type != "cuda" or not bf16():
        return None
    gpu = gpu_named(torch.cuda.get_device_name())
    return gpu.peak if gpu else None


def attention(context: int) -> str:
    """The attention implementation to train and evaluate with, by its name in transformers.

    On CPUs and short contexts the plain one: its backward is faster there (docs/log.md).
    """
    return "eager" if device().type == "cpu" and context <= 512 else "sdpa"
