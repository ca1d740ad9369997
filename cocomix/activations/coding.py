"""Number formats of the store: fp16, the raw bits of bf16, or int8 scaled per dimension.

The arrays are NumPy's, which has no bf16: its bits are stored as uint16.
"""

import json
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Dtype = Literal["fp16", "bf16", "int8"]

METADATA = b"cocomix"
"""The key in a file's metadata that describes the format of column `x`."""
MADE: dict[Dtype, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
"""The type in which a file's activations are collected before they are encoded."""
STORED: dict[Dtype, Any] = {"fp16": np.float16, "bf16": np.uint16, "int8": np.int8}
READ: dict[Dtype, Any] = {"fp16": np.float16, "bf16": np.uint16, "int8": np.float32}
"""The type that `decoded` returns: it converts int8 only."""
LEVELS = 127
"""Steps of int8 on each side of the middle."""


class Scale(NamedTuple):
    """The dequantisation of int8, `x * step + middle`, and its rounding error."""

    step: NDArray[np.float32]
    """[d_model]."""
    middle: NDArray[np.float32]
    """[d_model]."""
    fvu: float
    """Squared rounding error divided by the variance."""


class Coded(NamedTuple):
    """Activations as they are stored."""

    x: NDArray[Any]
    """[rows, d_model], one of the types of `STORED`."""
    scale: Scale | None = None
    """The dequantisation; int8 only."""


def encoded(x: Tensor, dtype: Dtype) -> Coded:
    """Encode finite activations.

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
    """Decode stored rows [rows, d_model] to type `READ`; bf16 stays as bits."""
    return x if scale is None else x * scale.step + scale.middle


def as_tensor(x: NDArray[Any]) -> Tensor:
    """View an array of type `READ` as a tensor of the represented numbers; the memory is shared."""
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == np.uint16 else torch.from_numpy(x)


def metadata_of(coded: Coded) -> dict[bytes, bytes]:
    """The metadata of column `x`, as JSON: its type, and for int8 `step`, `middle` and `fvu`."""
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
    """The scale in a file's metadata; None: its type is not int8."""
    says = json.loads(metadata[METADATA])
    if says["dtype"] != "int8":
        return None
    return Scale(np.array(says["step"], np.float32), np.array(says["middle"], np.float32), says["fvu"])
