"""GPUs by name: peak speed and memory."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """Figures that the vendor states."""

    peak: float
    """Dense bf16 operations per second."""
    memory: float
    """Bytes."""


GPUS = {
    "H200": Gpu(989e12, 141e9),
    "H100 PCIe": Gpu(756e12, 80e9),
    "H100 NVL": Gpu(835e12, 94e9),
    "H100": Gpu(989e12, 80e9),
    "B200": Gpu(2250e12, 180e9),
    "A100": Gpu(312e12, 80e9),
    "L40S": Gpu(362e12, 48e9),
    "RTX 4090": Gpu(165e12, 24e9),
}


def gpu_named(name: str) -> Gpu | None:
    """The GPU whose key is a part of `name`, the name that drivers give; None: unknown."""
    return next((gpu for part, gpu in GPUS.items() if part.lower() in name.lower()), None)
