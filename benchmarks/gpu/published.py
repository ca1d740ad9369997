"""Part `published`: our training step against the formulation of the released code (`benchmarks.student_step`)."""

from functools import partial

from benchmarks import own_peak
from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.setting import Setting, Sizes
from benchmarks.student_step import STEPS, Blocks, Shape, times, two_steps
from cocomix.plumbing.device import tf32


def measurements(setting: Setting) -> dict[str, Measurement]:
    small = shape(setting.sizes)
    return {"times": partial(times, small, setting.sizes.repeats), "peaks": partial(peaks, small)}


def shape(sizes: Sizes) -> Shape:
    """Of the steps that are compared."""
    return Shape(
        student=Blocks(*sizes.student_blocks),
        teacher=Blocks(*sizes.teacher_blocks),
        concept_layer=sizes.concept_layer,
        vocab=sizes.vocab,
        latents=sizes.latents,
        k=sizes.k,
        context=sizes.context,
        windows=sizes.step_windows,
    )


def peaks(steps: Shape) -> dict[str, int]:
    """Peak bytes of each alternative; only a GPU's are each one's own."""
    with tf32():
        return {name: own_peak(partial(two_steps, steps, name)) for name in STEPS}
