"""Deployments of the same names, made in several folders: the second one is refused."""

import os
import re
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client

from cocomix.plumbing.errors import UserError
from flows import serve
from flows.owner import check_owner, owner_tag
from tests.flows.conftest import ROOT
from tests.flows.test_serve import deployed


@pytest.fixture
def clones(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with deployments of the same names, which no other test takes."""
    text = (ROOT / "prefect.yaml").read_text().replace("name: manual", f"name: {uuid4().hex}")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prefect.yaml").write_text(text)
    return tmp_path / "first", tmp_path / "second"


def register(folder: Path) -> str:
    """What `flows.serve` does with its first deployment; the name."""
    os.chdir(folder)
    deployment = deployed()[0]
    deployment.apply()
    return deployment.full_name


def test_the_second_of_two_clones_is_refused_in_one_line(
    clones: tuple[Path, Path], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = clones
    monkeypatch.chdir(second)
    name = register(first)
    os.chdir(second)
    monkeypatch.setenv("PREFECT_API_URL", server)
    with pytest.raises(SystemExit) as error:
        serve.main()
    os.chdir(first)
    assert error.value.code == (
        f"error: deployment {name} belongs to {owner_tag()}; give those in prefect.yaml other names, or, if that one "
        f"is to serve no more, `prefect deployment delete {name}`"
    )


def test_the_first_one_goes_on_and_so_does_the_second_when_the_first_is_gone(
    clones: tuple[Path, Path], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = clones
    monkeypatch.chdir(second)
    name = register(first)
    check_owner([name])
    moved = first.rename(first.with_name("moved"))
    os.chdir(moved)
    check_owner([name])
    assert register(moved) == name
    check_owner([name])
    os.chdir(second)
    with pytest.raises(UserError, match=re.escape(str(moved))):
        check_owner([name])


@pytest.mark.parametrize(
    ("host", "folder", "asked", "refused"),
    [
        ("another", "second", "never", False),
        ("another", "second", "before", False),  # a container's name changes, say
        ("another", "second", "lately", True),
        ("another", "first", "lately", True),
        (None, "second", "lately", False),  # workers on several machines, all at this path
        (None, "gone", "lately", True),  # it may be on another machine
        (None, "gone", "before", False),
        (None, "first", "before", True),
    ],
)
def test_a_deployment_of_another_machine_or_of_workers(
    clones: tuple[Path, Path],
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    host: str | None,
    folder: str,
    asked: str,
    refused: bool,
) -> None:
    """What `flows.serve` on another machine registers, or `prefect deploy` (host: none), and has asked for runs."""
    monkeypatch.chdir(clones[1])
    path, name = clones[0].with_name(folder), uuid4().hex
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(path)}}
    with get_client(sync_client=True) as client:
        id = client.create_deployment(
            client.create_flow_from_name("pipeline"),
            name,
            tags=[f"{host}:{path}"] if host else [],
            pull_steps=[] if host else [step],
        )
        if asked != "never":
            client.get_scheduled_flow_runs_for_deployments([id])
            while not client.read_deployment(id).last_polled:
                time.sleep(0.05)
        if asked == "before":
            monkeypatch.setattr("flows.owner.LATELY", timedelta(0))
    with pytest.raises(UserError, match=re.escape(str(path))) if refused else nullcontext():
        check_owner([f"pipeline/{name}"])


def test_a_name_that_the_server_does_not_know_is_free(server: str) -> None:
    check_owner([f"pipeline/{uuid4().hex}"])
