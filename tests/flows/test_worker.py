"""A Prefect worker in place of `flows.serve`, by the commands of docs/operations.md."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from prefect.states import Cancelling

from tests.flows.conftest import ROOT, make_project, set_params
from tests.flows.test_operations import PAGE
from tests.flows.test_reproduce import ends, wait_for_pid
from tests.flows.test_ui import PATIENCE, Process, Ui, command_of, descendants, free_port, until

SECTION = PAGE.partition("**Prefect workers.**")[2].partition("\n## ")[0]
CREATE, DEPLOY, START, DELETE = (
    shlex.split(line) for block in re.findall(r"```\n(.*?)```", SECTION, re.DOTALL) for line in block.splitlines()
)
"""The page's commands, in order."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc"),
]


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """A server with the deployments of the working directory, a clone: its programs are found without PYTHONPATH."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("clone"))
        for name in [name for name in os.environ if name.startswith("PREFECT")] + ["PYTHONPATH", "SHELL"]:
            patch.delenv(name, raising=False)
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.setenv("PREFECT_HOME", str(Path.cwd() / ".prefect"))
        patch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        make_project()
        Path("flows").symlink_to(ROOT / "flows")
        Path("prefect.toml").write_bytes((ROOT / "prefect.toml").read_bytes())
        Path("prefect.yaml").write_text((ROOT / "prefect.yaml").read_text().replace("[report]", "[number]"))
        with started(["prefect", "server", "start", "--port", str(port)]) as server:
            until(lambda: done(CREATE))
            assert done(DEPLOY)
            yield Ui(port, server)


@contextmanager
def started(command: list[str]) -> Iterator[Process]:
    """A program, which is stopped by Ctrl-C."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


def done(command: list[str]) -> bool:
    """Run a command; whether it succeeded."""
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def run(stage: str) -> UUID:
    """Ask for a run of a stage."""
    command = ["prefect", "deployment", "run", "pipeline/manual", "--param", f'stages=["{stage}"]']
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search("UUID: (.*)", said)
    assert found, said
    return UUID(found[1].strip())


def run_that_waits() -> tuple[UUID, int]:
    """A run at work on a stage of a minute, and the stage's process."""
    set_params(number=1, wait=60)
    Path("pid").unlink(missing_ok=True)
    return run("wait"), wait_for_pid()


def test_a_run_completes(prefect: Ui) -> None:
    with started(START):
        prefect.until_state(run("number"), "Completed")
    assert Path("number.txt").read_text() == "1"


def test_a_killed_worker_leaves_no_process_and_the_work_goes_on_with_the_next_one(prefect: Ui) -> None:
    with started(START) as worker:
        lost, _ = run_that_waits()
        below = descendants(worker.pid)
        assert {"flows.dvc", "wait.py"} <= {word for each in below for word in command_of(each).split()}
        worker.kill()
        assert [each for each in below if not ends(each)] == []
    set_params(number=1, wait=0)
    assert done([word.replace("ID", str(lost)) for word in DELETE])
    with started(START):
        prefect.until_state(run("wait"), "Completed")
    assert Path("wait.txt").read_text() == "done"


def test_a_cancelled_run_ends_and_leaves_no_process(prefect: Ui) -> None:
    with started(START) as worker:
        cancelled, stage = run_that_waits()
        prefect.client.set_flow_run_state(cancelled, Cancelling())
        assert ends(stage)
        prefect.until_state(cancelled, "Cancelled")
        # multiprocessing's tracker lives as long as the worker.
        others = [each for each in descendants(worker.pid) if "resource_tracker" not in command_of(each)]
        assert [each for each in others if not ends(each)] == []


def test_a_worker_runs_nothing_that_the_server_says_a_deployment_is(prefect: Ui) -> None:
    client = prefect.client
    own = client.read_deployment_by_name("pipeline/manual")
    steps = [{"prefect.deployments.steps.run_shell_script": {"script": "touch x"}}]
    variables = {"command": f"touch {Path.cwd()}/x", "env": {"A": "1"}}
    foreign = {"name": "foreign", "flow_id": str(client.create_flow_from_name("other")), "work_pool_name": "cocomix"}
    client.request("POST", "/deployments/", json=foreign | {"pull_steps": steps, "entrypoint": "x.flow"})
    with started(START):
        for change in ({"pull_steps": steps}, {"pull_steps": [], "job_variables": variables}):
            client.request("PATCH", f"/deployments/{own.id}", json=change).raise_for_status()
            refused = run("number")
            prefect.until_state(refused, "Failed")
            state = prefect.read(refused).state
            assert state
            assert (state.message or "").startswith(
                f"deployment pipeline/manual: {list(change)[-1]}: not as prefect.yaml"
            )
        other = client.create_flow_run_from_deployment(client.read_deployment_by_name("other/foreign").id).id
        prefect.until_state(other, "Failed")
        assert done(DEPLOY)  # puts them back
        client.request("PATCH", f"/deployments/{own.id}", json={"job_variables": {}}).raise_for_status()
        prefect.until_state(run("number"), "Completed")
    assert not Path("x").exists()


def test_the_worker_starts_without_a_warning() -> None:
    done = subprocess.run([sys.executable, "-m", "flows.worker", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
