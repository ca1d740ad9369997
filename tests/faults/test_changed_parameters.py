"""A parameter that is changed while a stage lies half done: what was begun under the other value is never taken."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.killing import content, forget, kill_half_way, locked
from tests.stages.project import OUTS, Project, words

CHANGES = [
    ("base", {"base": {"seed": 1}}),
    ("activations", {"activations": {"seed": 1}}),
    ("activations", {"activations": {"shard_tokens": 1024}}),
    ("sae", {"sae": {"batch_size": 128}}),
    ("sae", {"sae": {"k": 7}}),
    ("attribution", {"attribution": {"sign": "helpful"}}),
    ("distribution", {"distribution": {"seed": 1}}),
    ("explain", {"explain": {"contexts": 11}}),
    ("pretrain@ntp-0", {"pretrain": {"training": {"learning_rate": 0.003}}}),
    ("pretrain@cocomix-0", {"pretrain": {"cocomix": {"concept_weight": 0.2}}}),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stage", "changes"), CHANGES)
def test_a_stage_killed_under_one_value_and_another_makes_of_each_what_an_undisturbed_one_makes(
    project: Project, finished: Project, tmp_path: Path, stage: str, changes: dict[str, Any]
) -> None:
    undisturbed = finished.copy(tmp_path / "undisturbed")
    change(undisturbed, changes)
    other = made(undisturbed, stage)

    shipped = (project.path / "params.yaml").read_bytes()
    forget(project, stage)
    first = kill_half_way(project, stage)
    change(project, changes)
    second = kill_half_way(project, stage)
    assert first != second
    assert made(project, stage) == other
    (project.path / "params.yaml").write_bytes(shipped)
    made(project, "methods")
    assert made(project, stage) == content(finished.path / "artifacts" / OUTS[stage]) != other


@pytest.mark.slow
def test_a_parameter_that_changes_while_its_stage_works_is_not_noted_as_that_of_the_artifact(project: Project) -> None:
    shipped = (project.path / "params.yaml").read_bytes()
    before = locked(project, "tokenize")
    forget(project, "tokenize")
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", "--no-run-cache", "tokenize"]
    environment = project.environment
    with subprocess.Popen(command, cwd=project.path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not list((project.path / "artifacts/.work/tokenize").glob("*/*")):
            time.sleep(0.01)
        project.change({"sae": {"k": 7}, "tokenize": {"vocab_size": 500}})
        assert process.stderr
        said = process.stderr.read()
    assert process.returncode
    assert "error: params.yaml: tokenize changed while this stage was at work" in said
    assert locked(project, "tokenize") is None
    (project.path / "params.yaml").write_bytes(shipped)
    project.change({"sae": {"k": 7}})  # another stage's
    project.dvc("--wait-for-lock", "repro", "--single-item", "--no-run-cache", "tokenize")
    assert locked(project, "tokenize") == before


def change(project: Project, changes: dict[str, Any]) -> None:
    """Change parameters; `pretrain` reads those of its method from what `methods` made."""
    project.change(changes)
    made(project, "methods")


def made(project: Project, stage: str) -> dict[str, bytes]:
    """The artifact, after a run of the stage."""
    done = project.stage(*words(stage))
    assert done.returncode == 0, done.stderr
    return content(project.path / "artifacts" / OUTS[stage])
