"""Sweeps of the real pipeline, at smoke size."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stages.project import Project

STEPS = "pretrain.training.steps=20"


def run(project: Project, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flows.sweep", *arguments]
    return subprocess.run(command, cwd=project.path, env=project.environment, capture_output=True, text=True)


def results(project: Project, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((project.path / f"metrics/sweep/{name}.json").read_text())
    return found


def state(project: Project) -> dict[str, bytes]:
    """What a sweep must leave alone."""
    kept = [project.path / "params.yaml", project.path / "dvc.lock"]
    kept += [each for name in ("metrics", "plots") for each in (project.path / name).rglob("*") if each.is_file()]
    kept += [each for each in (project.path / "artifacts").rglob("*") if each.is_file() and ".work" not in each.parts]
    contents = {str(each.relative_to(project.path)): each.read_bytes() for each in kept}
    return {name: content for name, content in contents.items() if not name.startswith("metrics/sweep/")}


@pytest.mark.slow
def test_a_sweep_compares_settings_and_leaves_the_project_as_it_was(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    before = state(project)
    (project.path / "mine.yaml").write_text(
        "plain: {}\nadded: {pretrain: {cocomix: {mixing: add}}}\nbroken: {corpus: {files: {paths: [no/such]}}}\n"
    )
    command = ["mine.yaml", STEPS, "--methods", "cocomix", "--seeds", "1"]
    done = run(project, *command)
    assert done.returncode == 1
    assert f"broken, {STEPS} cocomix seed 1: corpus.files.paths: 'no/such' matches no file in " in done.stderr
    assert done.stderr.index("failed: broken") < done.stderr.index("[1/3] plain")
    runs = results(project, "mine")
    assert [(each["setting"], each["seed"]) for each in runs] == [
        (f"{name}, {STEPS}", 1) for name in ("plain", "added")
    ]
    assert len({each["pretrain"]["flops_per_token"] for each in runs}) == 2
    assert len({each["evaluate"]["validation"]["loss"] for each in runs}) == 2
    assert all(each["curve"]["tokens"][-1] == each["pretrain"]["tokens"] for each in runs)
    table = [line for line in done.stdout.splitlines() if line.startswith(f"added, {STEPS}  cocomix  1  ")]
    assert len(table) == 1
    assert not changes(project, before)


def changes(project: Project, before: dict[str, bytes]) -> set[str]:
    """What differs, apart from models, and measurements of them, that were not there."""
    after = state(project)
    found = {name for name in before | after if before.get(name) != after.get(name)}
    return {
        name for name in found if name in before or not name.startswith(("artifacts/models/", "artifacts/.measured/"))
    }


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_goes_on_and_the_project_is_as_it_was(
    finished: Project, tmp_path: Path, how: signal.Signals
) -> None:
    project = finished.copy(tmp_path / "project")
    before = state(project)
    command = [sys.executable, "-m", "flows.sweep", "stopped", "pretrain.training.steps=10,100000", "--methods", "ntp"]
    with subprocess.Popen(command, cwd=project.path, env=project.environment, stdout=subprocess.DEVNULL) as process:
        work = project.path / "artifacts/.work/pretrain@ntp-0"
        known = set(work.glob("*"))
        while process.poll() is None and len(set(work.glob("*/scratch/*")) - known) < 1:
            time.sleep(0.1)
        wait_for(lambda: (project.path / "metrics/sweep/stopped.json").exists())
        process.send_signal(how)
    assert process.returncode in (-how, 128 + how)
    if how != signal.SIGKILL:
        assert not changes(project, before)
    done = run(project, "stopped", "pretrain.training.steps=10,12", "--methods", "ntp")
    assert done.returncode == 0, done.stderr
    assert [each["setting"] for each in results(project, "stopped")] == [
        f"pretrain.training.steps={steps}" for steps in (10, 12)
    ]
    assert not changes(project, before)


def wait_for(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.1)
