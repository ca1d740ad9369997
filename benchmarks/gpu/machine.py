"""Part `machine`: what it is, and the rates that bound everything else."""

import os
import platform

import torch
import transformers

from benchmarks import measured, medians, on_gpu
from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.setting import Setting
from cocomix.plumbing.device import bf16, device, peak_flops


def measurements(setting: Setting) -> dict[str, Measurement]:
    width = 8192 if setting.sizes.context >= 1024 else 256
    return {"versions": versions, "rates": lambda: rates(width)}


def versions() -> dict[str, object]:
    gpu = torch.cuda.get_device_properties(device()) if on_gpu() else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cores": os.cpu_count(),
        "gpu": gpu and gpu.name,
        "memory": gpu and gpu.total_memory,
        "bf16": bf16(),
        "peak_flops": peak_flops(),
    }


def rates(width: int) -> dict[str, float]:
    """Of a square product in bf16, operations a second; of copies on the device and from the host, bytes a second."""
    a, b = (torch.randn(width, width, device=device(), dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(16 * width**2, dtype=torch.uint8, device=device())
    on_host = torch.empty(len(source), dtype=torch.uint8, pin_memory=on_gpu())
    target = torch.empty_like(source)
    works = {
        "bf16_product": lambda: a @ b,
        "copy": lambda: target.copy_(source),
        "from_host": lambda: target.copy_(on_host, non_blocking=True),
    }
    seconds = measured(medians(works, 9))
    return {
        "bf16_product": 2 * width**3 / seconds["bf16_product"],
        "copy": 2 * len(source) / seconds["copy"],
        "from_host": len(source) / seconds["from_host"],
    }
