"""Prefect on this machine, as `make ui` starts it: real processes, killed for real."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
)
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.states import Cancelling

from tests.flows.conftest import ROOT, set_params
from tests.flows.test_reproduce import ends, wait_for_pid

Process: TypeAlias = "subprocess.Popen[str]"
PATIENCE = 240.0
"""Seconds: these tests may run on a busy machine."""


class Ui:
    """A running `python -m flows.ui`, and its API."""

    def __init__(self, port: int, process: Process, password: str | None = None) -> None:
        self.port = port
        self.process = process
        self.client = SyncPrefectClient(f"http://127.0.0.1:{port}/api", auth_string=password)
        until(self.serves)

    def serves(self) -> bool:
        """Whether runs can be asked for."""
        assert self.process.poll() is None
        try:
            return len(self.client.read_deployments()) == 5
        except httpx.HTTPError:
            return False

    def run(self, **parameters: object) -> UUID:
        """Ask for a run, as the form does."""
        deployment = self.client.read_deployment_by_name("pipeline/manual")
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def read(self, run: UUID) -> FlowRun:
        return self.client.read_flow_run(run)

    def states_of_tasks(self, run: UUID) -> dict[str, str]:
        """The states of a run's tasks, by their names, once all are recorded to have ended."""
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
        tasks: list[TaskRun] = []

        def have_ended() -> bool:
            tasks[:] = self.client.read_task_runs(flow_run_filter=of_run)
            return bool(tasks) and all(each.state and each.state.is_final() for each in tasks)

        until(have_ended)
        return {each.name: each.state_name or "" for each in tasks}

    def errors(self, run: UUID) -> list[str]:
        """What a run logged as errors."""
        level = LogFilterLevel(ge_=logging.ERROR)
        logs = self.client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]), level=level))
        return [each.message for each in logs]

    def until_state(self, run: UUID, name: str) -> None:
        until(lambda: self.read(run).state_name == name)


def until(happens: Callable[[], bool], every: float = 0.2) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(every)


@contextmanager
def ui(**environment: str) -> Iterator[Ui]:
    """A UI on a free port, for the project in the working directory; stopped by Ctrl-C, it must leave nothing."""
    port = free_port()
    process = start(port, environment)
    try:
        running = Ui(port, process, environment.get("PREFECT_SERVER_API_AUTH_STRING"))
        yield running
        below = descendants(process.pid)
        assert below
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 128 + signal.SIGINT
        assert all(ends(each) for each in below)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


def start(port: int | str, environment: Mapping[str, str] | None = None, stderr: int = subprocess.DEVNULL) -> Process:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT")}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.ui"],
        env=clean | {"PREFECT_SERVER_API_PORT": str(port)} | dict(environment or {}),
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
    )


def free_port() -> int:
    """One of two free ports in a row."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def descendants(process: int) -> list[int]:
    """All processes below one."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [process]
    for each in found:
        found += children.get(each, [])
    return found[1:]


def command_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except FileNotFoundError:
        return ""


def of_command(part: str, above: int) -> int:
    """The process below another one whose command line holds `part`."""
    return next(each for each in descendants(above) if part in command_of(each))


@pytest.fixture
def waiting_project(project: Path) -> Path:
    """The project with a stage that takes a minute, and what Prefect reads."""
    (project / "prefect.toml").write_bytes((ROOT / "prefect.toml").read_bytes())
    (project / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text().replace("[report]", "[number]"))
    set_params(number=1, wait=60)
    return project


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_a_run_is_started_cancelled_and_leaves_no_process(waiting_project: Path) -> None:
    with ui() as prefect:
        home = urllib.request.urlopen(f"http://127.0.0.1:{prefect.port}/").read()
        assert b"<html" in home
        run = prefect.run(stages=["wait"])
        stage = wait_for_pid()
        prefect.client.set_flow_run_state(run, Cancelling())
        assert ends(stage)
        prefect.until_state(run, "Cancelled")
        assert prefect.states_of_tasks(run)["wait"] == "Cancelled"
        assert prefect.errors(run) == []
        assert not any("flows.dvc" in command_of(each) for each in descendants(prefect.process.pid))
        Path("pid").unlink()
        prefect.run(stages=["wait"], mode="only")  # at work when Ctrl-C comes
        stage = wait_for_pid()
    assert ends(stage)
    assert Path(".prefect/prefect.db").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("victim", ["wait.py", "flows.dvc", "spawn_main", "flows.serve", "flows.ui", "flows.gate"])
def test_a_run_survives_kill_9_of(waiting_project: Path, victim: str) -> None:
    port = free_port()
    process = start(port)
    prefect = Ui(port, process)
    run = prefect.run(stages=["wait"])
    stage = wait_for_pid()
    set_params(number=1, wait=0)
    Path("pid").unlink()
    below = descendants(process.pid)
    killed = process.pid if victim == "flows.ui" else of_command(victim, process.pid)
    os.kill(killed, signal.SIGKILL)
    assert ends(stage) or victim == "flows.gate"
    if victim in ("wait.py", "flows.dvc"):
        prefect.until_state(run, "Completed")  # by itself
    elif victim == "spawn_main":
        prefect.until_state(run, "Crashed")
    # A lost runner or server takes everything along.
    if victim not in ("wait.py", "flows.dvc", "spawn_main"):
        process.wait(PATIENCE)
        assert [each for each in below if not ends(each)] == []
    else:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    if victim not in ("wait.py", "flows.dvc"):
        process = start(port)
        prefect = Ui(port, process)
        prefect.until_state(run, "Completed")
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    assert Path("wait.txt").read_text() == "done"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_a_run_that_is_lost_before_it_has_begun_goes_on(waiting_project: Path) -> None:
    set_params(number=1, wait=0)
    port = free_port()
    process = start(port)
    prefect = Ui(port, process)
    run = prefect.run(stages=["number"])
    until(lambda: prefect.read(run).state_type == StateType.PENDING)
    below = descendants(process.pid)
    process.kill()
    process.wait()
    assert all(ends(each) for each in below)
    with ui() as prefect:
        prefect.until_state(run, "Completed")


def test_a_server_that_others_reach_needs_a_password(folder: Path) -> None:
    process = start(free_port(), {"PREFECT_SERVER_API_HOST": "0.0.0.0", "PYTHONPATH": str(ROOT)}, subprocess.PIPE)
    _, error = process.communicate(timeout=PATIENCE)
    assert error == (
        "error: PREFECT_SERVER_API_HOST: 0.0.0.0: others can reach it: set PREFECT_SERVER_API_AUTH_STRING too\n"
    )
    assert list(folder.iterdir()) == []


def test_a_port_in_use_is_refused_in_one_line(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        process = start(port, {"PYTHONPATH": str(ROOT)}, subprocess.PIPE)
        _, error = process.communicate(timeout=PATIENCE)
    assert error == f"error: port {port} is in use; set PREFECT_SERVER_API_PORT to another (the next one too)\n"


@pytest.mark.parametrize("port", ["0", "65535", "65536", "http"])
def test_a_port_that_there_is_not_is_refused_in_one_line(folder: Path, port: str) -> None:
    process = start(port, {"PYTHONPATH": str(ROOT)}, subprocess.PIPE)
    _, error = process.communicate(timeout=PATIENCE)
    assert error == (
        f"error: PREFECT_SERVER_API_PORT: {port}: must be a whole number from 1 to 65534 (the report has the next)\n"
    )


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """The address of a PostgreSQL database, where the machine has its programs."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    program = str(programs[-1]) if programs else shutil.which("pg_ctl")
    if not program:
        pytest.skip("no PostgreSQL here")
    # PostgreSQL refuses to run as root; its own user must be able to enter the folder.
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    port, data = free_port(), str(folder / "data")

    def run(*arguments: str) -> None:
        subprocess.run([str(program), *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL, **user)

    run("initdb", "-D", data, "-o", "--username=prefect --auth=trust --encoding=UTF8")
    run("start", "-w", "-D", data, "-l", str(folder / "log"), "-o", f"-p {port} -h 127.0.0.1 -k {folder}")
    try:
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        run("stop", "-D", data, "-m", "fast")
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_with_postgresql_and_a_password(waiting_project: Path, postgres: str) -> None:
    set_params(number=1, wait=0)
    with ui(
        PREFECT_SERVER_DATABASE_CONNECTION_URL=postgres, PREFECT_SERVER_API_AUTH_STRING="someone:secret"
    ) as prefect:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{prefect.port}/api/admin/version")
        prefect.until_state(prefect.run(), "Completed")
    assert not Path(".prefect/prefect.db").exists()
