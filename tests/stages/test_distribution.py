"""The stage `distribution`: several processes, kills, and nothing to draw."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cocomix.distribution.draws import Draws
from cocomix.plumbing.artifact import Artifact
from cocomix.tokens.windows import Tokens
from tests.faults.killing import content, forget, kill_half_way
from tests.stages.project import Project

OUT = Path("artifacts/distribution")


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    return finished.copy(tmp_path / "project")


def test_every_position_of_the_corpus_has_draws(finished: Project, tmp_path: Path) -> None:
    draws, tokens = Draws(Artifact(finished.path / OUT)), Tokens(finished.path / "artifacts/tokens")
    for split in ("train", "validation"):
        shares = draws.unpack(tokens, split, tmp_path / split).batch(slice(None)).shares.sum(-1)
        assert shares.shape == tokens.windows(split).shape
        assert ((shares - 1).abs() < 1e-5)[:, :-1].all()
    metrics = json.loads((finished.path / "metrics/distribution.json").read_bytes())
    assert 1 < metrics["mean_unique"] < 50
    assert 0 < metrics["mean_entropy"] < 6.3
    assert metrics["bytes_per_token"] > metrics["mean_unique"]


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one_and_a_killed_stage_those_of_an_undisturbed_one(
    project: Project, finished: Project
) -> None:
    expected = content(finished.path / OUT)
    forget(project, "distribution")
    kill_half_way(project, "distribution")
    environment = project.environment | {"COCOMIX_PROCESSES": "2"}
    subprocess.run([sys.executable, "-m", "stages.distribution"], cwd=project.path, env=environment, check=True)
    assert content(project.path / OUT) == expected


def test_without_draws_nothing_is_stored_and_the_base_model_is_not_read(project: Project) -> None:
    project.change({"distribution": {"draws": None}})
    weights = project.path / "artifacts/base/model.safetensors"
    size = weights.stat().st_size
    weights.unlink()  # it is linked to the cache
    weights.write_bytes(bytes(size))  # a reader would refuse it
    done = project.stage("distribution")
    assert done.returncode == 0, done.stderr
    artifact = Artifact(project.path / OUT)
    assert artifact.names() == []
    assert artifact.about["draws"] is None
    assert json.loads((project.path / "metrics/distribution.json").read_bytes()).keys() == {"artifact", "usage"}
