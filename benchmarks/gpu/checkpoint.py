"""Part `checkpoint`: saving and going on with the paper's largest model: seconds, bytes, memory of the host."""

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.setting import Setting, params_of
from benchmarks.gpu.training import objective_of, training
from cocomix.params import Params
from cocomix.plumbing import checkpoint
from cocomix.plumbing.device import device
from cocomix.training.objectives import Objective


def measurements(setting: Setting) -> dict[str, Measurement]:
    return {"save and resume": partial(save_and_resume, setting)}


def save_and_resume(setting: Setting) -> dict[str, object]:
    """Train one step, which saves, and go on from there in a second run, which has nothing left to do."""
    params, seconds = params_of(setting.sizes.large), dict[str, float]()
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder, _timed(seconds):
        before = _host_memory()
        first = _objective(params)
        training(params, first, 1, 1, Path(folder)).run("cocomix")
        saved = _host_memory()
        file = checkpoint.newest(Path(folder))
        assert file is not None
        second = _objective(params)
        again = training(params, second, 1, 1, Path(folder))
        started = time.perf_counter()
        again.run("cocomix")
        return {
            "bytes": file.stat().st_size,
            "seconds": seconds | {"resume": time.perf_counter() - started},
            "host_memory": {"before": before, "after_save": saved, "after_resume": _host_memory()},
            "same": all(map(torch.equal, first.parameters(), second.parameters())),
        }


def _objective(params: Params) -> Objective:
    with device():  # the CPU takes long for a billion random numbers
        return objective_of(params, "cocomix")


@contextmanager
def _timed(seconds: dict[str, float]) -> Iterator[None]:
    """Note the seconds of `checkpoint.save` and `checkpoint.load`, the last call of each."""
    before = {name: getattr(checkpoint, name) for name in ("save", "load")}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started = time.perf_counter()
            result = function(*args)
            seconds[name] = time.perf_counter() - started
            return result

        return call

    for name, function in before.items():
        setattr(checkpoint, name, timed(name, function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(checkpoint, name, function)


def _host_memory() -> int:
    """Peak resident bytes of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
