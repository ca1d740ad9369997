"""How the store keeps numbers: fp16, the raw bits of bf16, or int8 scaled for each dimension.

The arrays are numpy's, which has no bf16: its bits are uint16 there.
"""

import json
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Dtype = Literal["fp16", "bf16", "int8"]

METADATA = b"cocomix"
"""The key in a file's metadata that says how column `x` is to be read."""
MADE: dict[Dtype, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
"""What the activations of a file are gathered in before they are coded."""
STORED: dict[Dtype, Any] = {"fp16": np.float16, "bf16": np.uint16, "int8": np.int8}
READ: dict[Dtype, Any] = {"fp16": np.float16, "bf16": np.uint16, "int8": np.float32}
"""What `decoded` gives: only int8 is more than its bits."""
LEVELS = 127
"""Steps of int8 on either side of the middle."""


class Scale(NamedTuple):
    """How int8 is read, `x * step + middle`, and what was lost."""

    step: NDArray[np.float32]
    """[d_model]."""
    middle: NDArray[np.float32]
    """[d_model]."""
    fvu: float
    """Squared rounding error over the variance."""


class Coded(NamedTuple):
    """Activations as they are stored."""

    x: NDArray[Any]
    """[rows, d_model], one of the types of `STORED`."""
    scale: Scale | None = None
    """Of int8."""


def encoded(x: Tensor, dtype: Dtype) -> Coded:
    """Code finite activations.

    Args:
        x: [rows, d_model] of type `MADE[dtype]`.
    """
    if dtype == "fp16":
        return Coded(x.cpu().numpy())
    if dtype == "bf16":
        return Coded(x.cpu().view(torch.int16).numpy().view(np.uint16))
    low, high = x.aminmax(dim=0)
    middle, step = (low + high) / 2, (high - low) / (2 * LEVELS)
    step = step.where(step > 0, 1.0)
    bits = ((x - middle) / step).round_().clamp_(-LEVELS, LEVELS)
    error = float((bits * step + middle - x).square_().sum())
    variance = float(x.var(0, correction=0).sum()) * len(x)
    scale = Scale(step.cpu().numpy(), middle.cpu().numpy(), error / variance if variance else 0.0)
    return Coded(bits.to(torch.int8).cpu().numpy(), scale)


def decoded(x: NDArray[Any], scale: Scale | None) -> NDArray[Any]:
    """Stored rows [rows, d_model] as numbers of type `READ`, of bf16 the bits."""
    return x if scale is None else x * scale.step + scale.middle


def as_tensor(x: NDArray[Any]) -> Tensor:
    """An array of type `READ` as a tensor of what it means; the memory is shared."""
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == np.uint16 else torch.from_numpy(x)


def metadata_of(coded: Coded) -> dict[bytes, bytes]:
    """What a file says of its column `x`, as JSON: its type, and for int8 `step`, `middle` and `fvu`."""
    dtype = next(name for name, kind in STORED.items() if coded.x.dtype == kind)
    says: dict[str, Any] = {"dtype": dtype, "d_model": coded.x.shape[1]}
    if coded.scale:
        says |= {
            "step": [float(each) for each in coded.scale.step],
            "middle": [float(each) for each in coded.scale.middle],
            "fvu": coded.scale.fvu,
        }
    return {METADATA: json.dumps(says).encode()}


def scale_of(metadata: dict[bytes, bytes]) -> Scale | None:
    """The scale in a file's metadata, if it has one."""
    says = json.loads(metadata[METADATA])
    if says["dtype"] != "int8":
        return None
    return Scale(np.array(says["step"], np.float32), np.array(says["middle"], np.float32), says["fvu"])
