import logging
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.states import Cancelling, Crashed, Pending, Running, Scheduled
from prefect.utilities.schema_tools.validation import validate

from cocomix.params import load
from flows.serve import ATTEMPTS, _is_news, deployments, resume_lost
from flows.workspace import alone
from tests.flows.conftest import ROOT


@pytest.fixture
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def deployed() -> list[RunnerDeployment]:
    """The deployments of prefect.yaml, as they are sent to the server."""
    return [flow.to_deployment(**arguments) for flow, arguments in deployments()]  # type: ignore[misc]


def test_deployments_are_those_of_prefect_yaml(in_project: None) -> None:
    found = {each.name: each for each in deployed()}
    assert {name: each.entrypoint for name, each in found.items()} == {
        "manual": "flows.pipeline.pipeline",
        "custom": "flows.pipeline.custom",
        "stage": "flows.pipeline.pipeline",
        "sweep": "flows.sweep.sweep",
        "nightly": "flows.pipeline.pipeline",
    }
    assert [each.active for each in found["nightly"].schedules or []] == [False]
    for each in found.values():
        assert each.concurrency_limit == 1
        assert each.concurrency_options
        assert each.concurrency_options.collision_strategy == ConcurrencyLimitStrategy.ENQUEUE


def test_the_form_offers_the_stages_of_dvc_yaml(in_project: None) -> None:
    schema = deployed()[0]._parameter_openapi_schema
    offered = schema.properties["stages"]["items"]["enum"]
    stages = re.findall(r"^  (\w+):$", (ROOT / "dvc.yaml").read_text(), re.MULTILINE)
    assert [each for each in offered if "@" not in each] == stages
    assert schema.properties["mode"]["enum"] == ["upstream", "only", "downstream"]


def test_the_usual_form_is_short_and_shows_current_values(in_project: None) -> None:
    schema = deployed()[0]._parameter_openapi_schema
    assert list(schema.properties) == ["stages", "mode", "preset", "overrides"]
    presets = [path.stem for path in sorted((ROOT / "presets").glob("*.yaml"))]
    assert schema.properties["preset"]["enum"] == ["current", *presets]
    assert schema.properties["preset"]["default"] == "current"
    overrides = schema.properties["overrides"]
    assert f"`sae.k={load().sae.k}`" in overrides["description"]
    assert validate({"overrides": ["sae.k=16", "pretrain.methods=[ntp, kd]"]}, schema.model_dump()) == []
    assert validate({"overrides": ["sae.k"]}, schema.model_dump())
    assert validate({"preset": "huge"}, schema.model_dump())


def test_of_runs_without_a_process_the_last_goes_on_and_the_others_end(in_project: None, server: str) -> None:
    deployment = deployed()[0]
    deployment.entrypoint = None  # nothing is to run
    name = f"test-{Path.cwd().stat().st_ino}"
    deployment.name = name
    with get_client(sync_client=True) as client:
        id = deployment.apply()
        assert isinstance(id, UUID)
        cancelled = _run(client, id, Cancelling())
        older, crashed, last = (_run(client, id, state) for state in (Running(), Crashed(), Running()))

        def states() -> list[str]:
            return [client.read_flow_run(each).state_name or "" for each in (cancelled, older, crashed, last)]

        resume_lost([name])
        assert states() == ["Cancelled", "Crashed", "Crashed", "AwaitingRetry"]
        for _ in range(ATTEMPTS):
            client.set_flow_run_state(last, Pending(), force=True)
            client.set_flow_run_state(last, Running(), force=True)
        resume_lost([name])
        assert states()[-1] == "Crashed"


def test_a_run_that_was_lost_before_it_began_goes_on_and_one_of_the_future_waits(in_project: None, server: str) -> None:
    deployment = deployed()[0]
    deployment.entrypoint = None  # nothing is to run
    deployment.name = "lost-before-it-began"
    tomorrow = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
    with get_client(sync_client=True) as client:
        id = deployment.apply()
        assert isinstance(id, UUID)
        older = _run(client, id, Running())
        lost = client.create_flow_run_from_deployment(id).id
        client.set_flow_run_state(lost, Pending(), force=True)
        waiting = [client.create_flow_run_from_deployment(id, state=tomorrow).id for _ in range(60)]
        resume_lost([deployment.name])
        assert client.read_flow_run(lost).state_name == "AwaitingRetry"
        assert client.read_flow_run(older).state_name == "Crashed"
        assert {client.read_flow_run(each).state_name for each in waiting} == {"Scheduled"}


def test_it_waits_for_a_flow_at_work_in_the_folder_and_says_so(folder: Path, server: str) -> None:
    for name in ("prefect.yaml", "params.yaml"):
        Path(name).write_bytes((ROOT / name).read_bytes())
    environment = os.environ | {"PREFECT_API_URL": server, "PYTHONPATH": str(ROOT)}
    with (
        alone(),
        subprocess.Popen(
            [sys.executable, "-m", "flows.serve"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stderr
        assert "waiting" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert said == "stopped by SIGINT\n"
    assert process.returncode == 128 + signal.SIGINT


def test_a_run_that_waits_is_not_said_every_two_seconds() -> None:
    said = ["1 scheduled runs skipped (at capacity)", "Runner 'x' submitting flow run 'y'"]
    records = [logging.makeLogRecord({"msg": f"%s{each}", "args": ("",)}) for each in said]
    assert [_is_news(each) for each in records] == [False, True]


STOPPED = """
import asyncio, os, signal
from flows.serve import _Runner
runner = _Runner()

async def work():
    signal.signal(signal.SIGTERM, runner.handle_sigterm)  # as Runner.start does
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(600)

try:
    asyncio.run(work())
except SystemExit:
    print("left")
"""


def test_what_runs_deployments_leaves_its_loop_by_sigterm_and_says_nothing(folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::RuntimeWarning"}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED], env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    assert (done.stdout, done.stderr) == ("left\n", "")


def _run(client: SyncPrefectClient, deployment: UUID, state: object) -> UUID:
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, state, force=True)  # type: ignore[arg-type]
    return run.id
