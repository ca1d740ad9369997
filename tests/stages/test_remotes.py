"""Artifacts shared through a DVC remote: what one copy of the project made, another need not make again."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocomix.plumbing.artifact import Artifact
from tests.stages.project import Project
from tests.stages.test_pipeline import artifacts, ran

NOT_IN_GIT = "artifacts", ".dvc/cache", ".dvc/tmp", ".dvc/site", "remote", "__pycache__"


def clone(project: Project, target: Path) -> Project:
    """What git would give another person: the project without artifacts and cache."""
    left_out = {project.path / each for each in NOT_IN_GIT}

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {each for each in names if Path(folder, each) in left_out}

    shutil.copytree(project.path, target, ignore=ignored)
    return Project(target)


def digests(project: Project) -> dict[str, str]:
    return {str(each.relative_to(project.path)): Artifact(each).digest for each in artifacts(project)}


def test_a_second_clone_takes_everything_from_the_remote_and_runs_nothing(finished: Project, tmp_path: Path) -> None:
    first = finished.copy(tmp_path / "first")
    first.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    first.dvc("push", "--run-cache")
    second = clone(first, tmp_path / "second")
    assert ran(second.dvc("repro", "--pull")) == set()
    assert digests(second) == digests(first)
    for path in artifacts(second):
        Artifact(path).verified()


def test_a_clone_pulls_one_artifact_alone(finished: Project, tmp_path: Path) -> None:
    first = finished.copy(tmp_path / "first")
    first.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    first.dvc("push", "sae")
    second = clone(first, tmp_path / "second")
    second.dvc("pull", "sae")
    assert set(digests(second)) == {"artifacts/sae"}


@pytest.fixture
def s3() -> Iterator[str]:
    """The address of an S3 server on this machine."""
    pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("dvc_s3", reason="needs the extra s3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_the_same_through_s3(finished: Project, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="cocomix")
    first = finished.copy(tmp_path / "first")
    first.dvc("remote", "add", "--default", "store", "s3://cocomix/store")
    first.dvc("remote", "modify", "store", "endpointurl", s3)
    first.dvc("push", "--run-cache")
    second = clone(first, tmp_path / "second")
    assert ran(second.dvc("repro", "--pull")) == set()
    assert digests(second) == digests(first)
