"""What the drivers of the libraries share. It runs in their environments, so it needs torch and numpy only.

A driver is run as `python DRIVER FOLDER`, where FOLDER holds train.npy, held_out.npy and setting.json. Its last line of
output is one JSON object: the seconds of each step but the first, of the CPU or, on a GPU, by the clock; and the
variance unexplained after the last.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Setting(NamedTuple):
    """What all train alike; the content of setting.json."""

    d_model: int
    latents: int
    k: int
    batch_size: int
    steps: int
    learning_rate: float
    warmup_steps: int
    decay_steps: int


FOLDER = Path(sys.argv[-1])


def device() -> str:
    """Where all train."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def setting() -> Setting:
    """Of this run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Setting(**json.loads((FOLDER / "setting.json").read_text()))


def batches(size: int) -> Iterator[Tensor]:
    """The training activations in their order, on the device: [size, d_model] each."""
    yield from torch.split(torch.from_numpy(np.load(FOLDER / "train.npy")).to(device()), size)


def now() -> float:
    """CPU seconds of this process; on a GPU, seconds by the clock once it has done what it was given."""
    if device() == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def train(step: Callable[[int, Tensor], object], batch_size: int) -> list[float]:
    """Take a step with each batch. Returns the seconds of each but the first."""
    seconds = []
    for number, x in enumerate(batches(batch_size)):
        start = now()
        step(number, x)
        seconds.append(now() - start)
    return seconds[1:]


@torch.no_grad()
def finish(seconds: list[float], reconstruct: Callable[[Tensor], Tensor]) -> None:
    """Measure what was trained, and print the result."""
    x = torch.from_numpy(np.load(FOLDER / "held_out.npy")).to(device())
    error = torch.cat([reconstruct(part) - part for part in torch.split(x, 1024)])
    fvu = error.square().sum() / (x - x.mean(0)).square().sum()
    print(json.dumps({"seconds": seconds, "fvu": float(fvu)}))
