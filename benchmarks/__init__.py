"""Side-by-side measurements: `python -m benchmarks.NAME --json` prints one JSON object as its last line.

What is compared runs in turns in one process, and medians are compared, so that a busy machine disturbs both sides
alike. Times are CPU seconds of one thread where nothing else is said.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from cocomix.allocator import keep_freed_memory
from cocomix.device import bf16, device


def set_up() -> None:
    """One thread, and memory as the stages use it."""
    torch.set_num_threads(1)
    keep_freed_memory()


def medians(
    works: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Seconds of each piece of work: each is done once unmeasured, then all in turns."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = clock()
            work()
            seconds[name].append(clock() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def report(benchmark: str, ratios: Mapping[str, float]) -> None:
    """Print what was measured: lines for people, or with `--json` one object."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    if not parser.parse_args().json:
        for name, ratio in ratios.items():
            print(f"{name:40} {ratio:8.3f}")
        return
    machine = {
        "processor": torch.cuda.get_device_name() if device().type == "cuda" else _processor(),
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
