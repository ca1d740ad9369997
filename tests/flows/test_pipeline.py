import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_LOGGING_TO_API_ENABLED,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

from flows.pipeline import pipeline
from tests.flows.conftest import set_params
from tests.flows.test_reproduce import ends, wait_for_pid


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server with a database of its own."""
    settings = {
        PREFECT_HOME: tmp_path_factory.mktemp("prefect"),
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with temporary_settings(settings), prefect_test_harness(server_startup_timeout=120):
        yield PREFECT_API_URL.value()


def states(*stages: str) -> dict[str, str]:
    """Run the flow; the state names of its tasks, as the server knows them, and of the flow itself as `flow`."""
    final = pipeline(stages, return_state=True)
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs()
    own = [run for run in runs if run.flow_run_id == final.state_details.flow_run_id]
    return {run.name: run.state_name or "" for run in own} | {"flow": final.name or ""}


def test_each_stage_is_a_task_and_shows_what_dvc_did(project: Path, server: str) -> None:
    assert states("each") == {
        "number": "Completed",
        "parity": "Completed",
        "each@x": "Completed",
        "each@y": "Completed",
        "flow": "Completed",
    }
    assert set(states("each@x").values()) == {"Up to date", "Completed"}
    set_params(number=3)
    after = states("each")
    assert after == {
        "number": "Completed",
        "parity": "Completed",
        "each@x": "Up to date",  # the parity did not change
        "each@y": "Up to date",
        "flow": "Completed",
    }
    set_params(number=1)
    assert states("number") == {"number": "Restored", "flow": "Completed"}


def test_a_failing_stage_ends_the_flow_with_its_own_words(project: Path, server: str) -> None:
    set_params(number=13)
    final = pipeline(return_state=True)
    assert final.is_failed()
    assert final.message == "number: params.yaml: sae.seed: 13: must not be 13"


def test_an_unknown_stage_fails_the_flow_in_one_line(project: Path, server: str) -> None:
    final = pipeline(("nmber",), return_state=True)
    assert final.message == "nmber: no such stage in dvc.yaml; did you mean 'number'?"


def test_sigterm_ends_the_running_stage_and_the_same_command_goes_on(project: Path, server: str) -> None:
    set_params(number=1, wait=60)
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline"],
        env=os.environ | {"PREFECT_API_URL": server},
        stderr=subprocess.DEVNULL,
    )
    stage = wait_for_pid()
    flow.send_signal(signal.SIGTERM)
    assert flow.wait(60) == 128 + signal.SIGTERM
    assert ends(stage)
    set_params(number=1, wait=0)
    assert states() == {
        "number": "Up to date",
        "parity": "Up to date",
        "each@x": "Up to date",
        "each@y": "Up to date",
        "wait": "Completed",
        "flow": "Completed",
    }
