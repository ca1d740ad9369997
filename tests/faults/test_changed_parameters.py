"""A parameter that is changed while a stage lies half done: what was begun under the other value is never taken."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.killing import content, forget, kill_half_way
from tests.stages.project import OUTS, Project, words

CHANGES = [
    ("base", {"base": {"seed": 1}}),
    ("activations", {"activations": {"seed": 1}}),
    ("activations", {"activations": {"shard_tokens": 1024}}),
    ("sae", {"sae": {"batch_size": 128}}),
    ("attribution", {"attribution": {"sign": "helpful"}}),
    ("explain", {"explain": {"contexts": 11}}),
    ("pretrain@ntp-0", {"pretrain": {"training": {"learning_rate": 0.003}}}),
    ("pretrain@cocomix-0", {"pretrain": {"cocomix": {"concept_weight": 0.2}}}),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("stage", "changes"),
    [("sae", {"sae": {"k": 7}}), *(pytest.param(*each, marks=pytest.mark.slow) for each in CHANGES)],
)
def test_a_stage_killed_under_one_value_and_another_makes_of_each_what_an_undisturbed_one_makes(
    project: Project, finished: Project, tmp_path: Path, stage: str, changes: dict[str, Any]
) -> None:
    undisturbed = finished.copy(tmp_path / "undisturbed")
    undisturbed.change(changes)
    other = made(undisturbed, stage)

    shipped = (project.path / "params.yaml").read_bytes()
    forget(project, stage)
    first = kill_half_way(project, stage)
    project.change(changes)
    second = kill_half_way(project, stage)
    assert first != second
    assert made(project, stage) == other
    (project.path / "params.yaml").write_bytes(shipped)
    assert made(project, stage) == content(finished.path / "artifacts" / OUTS[stage]) != other


def made(project: Project, stage: str) -> dict[str, bytes]:
    """The artifact, after a run of the stage."""
    done = project.stage(*words(stage))
    assert done.returncode == 0, done.stderr
    return content(project.path / "artifacts" / OUTS[stage])
