"""What each of the stages that run at a time gets of this machine: cores, or GPUs."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from cocomix.plumbing.runtime import runtime
from flows.gpu import VISIBLE, gpus


class Share(NamedTuple):
    """A part of this machine, for one stage."""

    environment: Mapping[str, str]
    """Variables that keep the stage to its part; empty: the whole machine."""
    gpus: tuple[str, ...]
    """Its GPUs, as CUDA_VISIBLE_DEVICES names them."""


def whole() -> Share:
    """All of the machine."""
    return Share({}, gpus())


def shares() -> list[Share]:
    """The parts for `runtime().trainings` stages at a time; at most one for each GPU, if there are GPUs.

    On CPUs, a stage is one process: threads share its memory, while processes would exchange gradients. Processes and
    threads are set only where neither the settings nor OMP_NUM_THREADS say them.
    """
    machine, count = whole(), runtime().trainings
    if machine.gpus:
        count = min(count, len(machine.gpus))
    if count == 1:
        return [machine]
    parts = [machine.gpus[each::count] for each in range(count)]
    return [Share(_environment(count, part), part) for part in parts]


def _environment(count: int, part: tuple[str, ...]) -> dict[str, str]:
    settings = runtime()
    environment = {VISIBLE: ",".join(part)} if part else {}
    processes = settings.processes if settings.processes != "auto" else len(part) or 1
    if settings.processes == "auto" and not part:
        environment["COCOMIX_PROCESSES"] = "1"
    if settings.threads == "auto" and "OMP_NUM_THREADS" not in os.environ:
        environment["COCOMIX_THREADS"] = str(max(1, settings.cores // (count * processes)))
    return environment
