"""Where tensors live, and in which arithmetic: what `runtime()` asks for, resolved on this machine."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from cocomix.errors import UserError
from cocomix.runtime import runtime


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


def attention(context: int) -> str:
    """The attention implementation to train and evaluate with, by its name in transformers.

    On CPUs and short contexts the plain one: its backward is faster there (docs/log.md).
    """
    return "eager" if device().type == "cpu" and context <= 512 else "sdpa"
