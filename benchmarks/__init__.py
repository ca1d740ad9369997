"""Side-by-side benchmarks: `python -m benchmarks.NAME --json` prints one JSON object as its last line.

Alternatives run in turns in one process, and their medians are compared, so that other load on the machine affects both
alike. Times are CPU seconds of one thread unless stated otherwise.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from cocomix.plumbing.allocator import keep_freed_memory
from cocomix.plumbing.device import bf16, device, peak_memory


def set_up() -> None:
    """Use one thread, and the memory settings of the stages."""
    torch.set_num_threads(1)
    keep_freed_memory()


class Seconds(NamedTuple):
    """Time that some work took."""

    cpu: float
    """Sum over all threads."""
    wall: float


def medians(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Seconds]:
    """Median times of each piece of work: each runs once unmeasured, then all run in turns `repeats` times."""
    for work in works.values():
        work()
        wait_for_gpu()
    taken: dict[str, list[Seconds]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            wait_for_gpu()
            taken[name].append(Seconds(time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: Seconds(*(statistics.median(each) for each in zip(*runs, strict=True))) for name, runs in taken.items()
    }


def on_gpu() -> bool:
    """Whether the measured work runs on a GPU."""
    return device().type == "cuda"


def wait_for_gpu() -> None:
    """Wait until a GPU has done what it was given; does nothing without one."""
    if on_gpu():
        torch.cuda.synchronize()


def measured(seconds: Mapping[str, Seconds]) -> dict[str, float]:
    """The seconds to compare: of CPU, since other programs may share it; on a GPU, which is ours alone, wall-clock."""
    return {name: each.wall if on_gpu() else each.cpu for name, each in seconds.items()}


def peak(benchmark: str, way: str) -> int:
    """Peak bytes of one alternative in its own process: `benchmarks.<benchmark> --peak <way>`."""
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--peak", way]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def reset_peak_memory() -> None:
    """On a GPU, free what nothing refers to, and count the peak from here; does nothing without one."""
    if on_gpu():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def own_peak(work: Callable[[], object]) -> int:
    """Peak bytes of this process during `work`, beyond its peak before; on a GPU, of tensors."""
    reset_peak_memory()
    before = peak_memory()
    work()
    return peak_memory() - before


def report(benchmark: str, ratios: Mapping[str, float]) -> None:
    """Print the ratios: lines for people, or with `--json` one object."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    if not parser.parse_args().json:
        for name, ratio in ratios.items():
            print(f"{name:40} {ratio:8.3f}")
        return
    machine = {
        "processor": torch.cuda.get_device_name() if on_gpu() else _processor(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "bf16": bf16(),
    }
    rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": benchmark, "machine": machine, "ratios": rounded}))


def _processor() -> str:
    """The name of the CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
