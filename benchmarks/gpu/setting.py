"""What all parts share: their sizes, their folder, parameters of presets, and runtime settings for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import on_gpu
from cocomix.params import Params
from cocomix.plumbing.checked import merge, parse, read_yaml
from cocomix.plumbing.runtime import runtime

ROOT = Path(__file__).parents[2]


class Sizes(NamedTuple):
    """What is measured."""

    student: str
    """Preset of the models that are trained."""
    large: str
    """Preset of the model that is saved and resumed."""
    steps: int
    """Training steps of a run."""
    batch: int
    """Windows of a training step."""
    repeats: int
    """Turns of alternatives that are compared."""
    context: int
    vocab: int
    latents: int
    k: int
    student_blocks: tuple[int, int, int]
    """Width, blocks and heads of the students that are compared step by step."""
    concept_layer: int
    teacher_blocks: tuple[int, int, int]
    """The same of the base model; labels are of its middle."""
    step_windows: int
    """Windows of a step that is compared."""
    label_windows: int
    """Windows that are labelled at once."""
    kernel_rows: int
    """Rows of a kernel's input on the device."""
    cpu_rows: int
    """Rows of a kernel's input that the CPU computes too."""
    sae_batch: int
    """Activations of an autoencoder's step."""
    sae_steps: int
    interrupted_steps: int
    """Training steps of the run that a signal stops."""


REAL = Sizes(
    student="paper-69m",
    large="paper-1.38b",
    steps=20,
    batch=256,
    repeats=9,
    context=1024,
    vocab=50257,
    latents=32768,
    k=32,
    student_blocks=(512, 8, 8),
    concept_layer=3,
    teacher_blocks=(768, 12, 12),
    step_windows=16,
    label_windows=16,
    kernel_rows=4096,
    cpu_rows=256,
    sae_batch=8192,
    sae_steps=24,
    interrupted_steps=20_000,
)
TOY = Sizes(
    student="smoke",
    large="smoke",
    steps=4,
    batch=4,
    repeats=2,
    context=32,
    vocab=512,
    latents=64,
    k=4,
    student_blocks=(32, 3, 2),
    concept_layer=1,
    teacher_blocks=(32, 4, 2),
    step_windows=2,
    label_windows=2,
    kernel_rows=40,
    cpu_rows=20,
    sae_batch=64,
    sae_steps=4,
    interrupted_steps=3000,
)


class Setting(NamedTuple):
    """What a part is given."""

    sizes: Sizes
    folder: Path
    """An empty folder, or what earlier parts left there."""


def sizes() -> Sizes:
    """Those for this machine."""
    return REAL if on_gpu() else TOY


def values_of(preset: str) -> dict[str, Any]:
    """The values of params.yaml with a preset, as `python -m flows.preset` sets them."""
    values = read_yaml(ROOT / "params.yaml")
    for name in ("default", preset):
        merge(values, read_yaml(ROOT / f"presets/{name}.yaml"))
    return values


def params_of(preset: str) -> Params:
    """The parameters of `values_of`."""
    return parse(Params, values_of(preset), preset)


@contextmanager
def settings(**given: object) -> Iterator[None]:
    """Other runtime settings for a while, by the names of `Runtime`'s fields."""
    variables = {f"COCOMIX_{name.upper()}": str(value) for name, value in given.items()}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    runtime.cache_clear()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        runtime.cache_clear()
