"""Several trainings at a time, each with a share of the machine, against one after another: seconds by the clock.

over_one_at_a_time  the time of all trainings, `--trainings` at a time, divided by that of one after another, each of
                    which has the whole machine
over_a_share_each   the same, divided by that of one after another with a share each; without loss, 1 over their number

The trainings are those of stage `pretrain` for each listed method and two seeds, shortened to `--steps`, with the
settings that `python -m flows.pipeline --trainings N` gives them. DVC and Prefect, which all ways need, are left out.
With a share each, the models must have the same bytes. It needs the artifacts of a finished pipeline.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

from benchmarks import medians, report
from cocomix.params import FILE
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.checked import merge, read_yaml
from flows.shares import Share, shares, whole

ROOT = Path(__file__).parents[1]
SEEDS = [0, 1]


def ratios(project: Path, parts: Sequence[Share], changes: Mapping[str, Any], repeats: int) -> dict[str, float]:
    """The ratios.

    Args:
        project: the folder of the finished pipeline.
        parts: one for each of the trainings at a time.
        changes: parameters of the trainings, nested as in params.yaml.

    Raises:
        ValueError: when trainings at the same time give other models than one after another.
    """
    ways = {"one_at_a_time": [whole()], "a_share_each": parts[:1], "at_a_time": parts}
    models: dict[str, dict[str, str]] = {}

    def train(way: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trainings = prepare(Path(folder), project, changes)
            run([partial(_train, Path(folder), each) for each in trainings], ways[way])
            models[way] = {each: Artifact(Path(folder, "artifacts/models", each)).digest for each in trainings}

    seconds = medians({way: partial(train, way) for way in ways}, repeats)
    if models["at_a_time"] != models["a_share_each"]:
        raise ValueError("trainings at the same time gave other models than one after another")
    wall = seconds["at_a_time"].wall
    return {f"over_{way}": wall / seconds[way].wall for way in ("one_at_a_time", "a_share_each")}


def prepare(folder: Path, project: Path, changes: Mapping[str, Any]) -> list[str]:
    """Make a project's folder in which only the models are missing. Returns the trainings, as method-seed."""
    values: dict[str, Any] = dict(read_yaml(project / FILE))
    merge(values, changes)
    (folder / FILE).write_text(yaml.safe_dump(values))
    (folder / "artifacts").mkdir()
    for name in ("tokens", "base", "concepts", "distribution", "methods"):
        (folder / "artifacts" / name).symlink_to((project / "artifacts" / name).resolve())
    pretrain = values["pretrain"]
    return [f"{method}-{seed}" for method in pretrain["methods"] for seed in pretrain["seeds"]]


def run(works: Sequence[Callable[[Share], object]], parts: Sequence[Share]) -> None:
    """Do all work, as much at a time as there are parts of the machine, each with one that is free."""
    free = SimpleQueue[Share]()
    for part in parts:
        free.put(part)

    def with_part(work: Callable[[Share], object]) -> None:
        part = free.get()
        work(part)
        free.put(part)

    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(with_part, works))


def _train(folder: Path, training: str, part: Share) -> None:
    command = [sys.executable, "-m", "stages.pretrain", *training.split("-")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **part.environment}
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--trainings", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    arguments, sys.argv[1:] = parser.parse_known_args()
    os.environ["COCOMIX_TRAININGS"] = str(arguments.trainings)
    changes = {"pretrain": {"seeds": SEEDS, "training": {"steps": arguments.steps}}}
    report("trainings", ratios(Path(), shares(), changes, arguments.repeats))
