"""Part `pipeline`: the stages at smoke size, without DVC, in one process, so that the libraries are loaded once."""

import importlib
import json
import os
import time
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml

from benchmarks import reset_peak_memory
from benchmarks.gpu.parts import Measurement
from benchmarks.gpu.setting import Setting, values_of
from cocomix.params import load
from cocomix.plumbing.checked import merge
from cocomix.plumbing.device import peak_memory

PRESET = {
    "corpus": {"source": "files", "files": {"paths": ["texts/*.txt"]}, "megabytes": 0.3, "validation_share": 0.2},
    "pretrain": {"methods": ["ntp", "cocomix"], "seeds": [0]},
}
"""Besides the preset `smoke`; the text is that of Python's help."""

STAGES = [
    *("check", "corpus", "tokenize", "base_tokens", "base", "activations", "sae"),
    *("attribution", "distribution", "explain", "methods"),
    *(f"{stage} {method} 0" for method in ("cocomix", "ntp") for stage in ("pretrain", "evaluate")),
    *("steer", "report"),
]
"""Command lines, in an order in which each has what it needs."""


def measurements(setting: Setting) -> dict[str, Measurement]:
    project = made(setting.folder / "project")
    return {stage: partial(run, project, stage) for stage in STAGES}


def made(project: Path) -> Path:
    """The project's folder: parameters, and texts."""
    if not project.exists():
        (project / "texts").mkdir(parents=True)
        for name, text in topics.items():
            (project / f"texts/{name}.txt").write_text(text)
        change(project, values_of("smoke"), PRESET)
    return project


def change(project: Path, values: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Write params.yaml: `values` with `overrides`."""
    merge(values, overrides)
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def run(project: Path, stage: str) -> dict[str, Any]:
    """Run a stage in this process. Returns its losses, its seconds, and its peak memory: on a GPU, of tensors there."""
    os.chdir(project)
    name, *item = stage.split()
    reset_peak_memory()
    started = time.perf_counter()
    program = importlib.import_module(f"stages.{name}")
    program.run(load(), *(int(each) if each.isdigit() else each for each in item))
    found = {"seconds": time.perf_counter() - started, "peak_memory": peak_memory()}
    metrics = Path("metrics") / name / f"{'-'.join(item)}.json" if item else Path(f"metrics/{name}.json")
    content = json.loads(metrics.read_bytes()) if metrics.exists() else {}
    return found | {key: content[key] for key in ("validation_loss", "tokens_per_second", "fvu") if key in content}
