"""Part `compiled`: the part `training` with torch.compile, and both compared step by step."""

from collections.abc import Callable
from functools import partial

from benchmarks import measured, medians
from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.published import shape
from benchmarks.gpu.setting import Setting, settings
from benchmarks.gpu.training import METHODS, train
from benchmarks.student_step import Step, ntp, ours
from cocomix.plumbing.device import tf32


def measurements(setting: Setting) -> dict[str, Measurement]:
    return {
        **{method: partial(_compiled, partial(train, setting, method)) for method in METHODS},
        "speedup": partial(speedup, setting),
    }


def _compiled(work: Measurement) -> object:
    with settings(compile=True):
        return work()


def speedup(setting: Setting) -> dict[str, float]:
    """The time of a step divided by that of the compiled one, by method."""
    makers: dict[str, Callable[..., Step]] = {"ntp": ntp, "cocomix": ours}
    steps: dict[str, Step] = {}
    for name, make in makers.items():
        steps[name] = make(shape(setting.sizes))
        with settings(compile=True):
            steps[f"{name} compiled"] = make(shape(setting.sizes))
    with tf32():
        taken = measured(medians(steps, setting.sizes.repeats))
    return {name: taken[name] / taken[f"{name} compiled"] for name in makers}
