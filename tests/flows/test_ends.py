"""How commands end by a signal to their process group, as a terminal sends it, whatever they are at. Real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from flows.workspace import alone, dvc_at_work
from tests.flows.conftest import ROOT, SCRIPTS, set_params
from tests.flows.test_reproduce import ends, wait_for_pid
from tests.flows.test_ui import PATIENCE, Process, command_of, descendants, free_port, until

COMMANDS = ["flows.pipeline", "flows.sweep any", "flows.ui", "flows.serve", "flows.plan", "flows.preset smoke"]
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
HANGING = "import pathlib, time; pathlib.Path('imports').touch(); time.sleep(600)"

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")


def start(command: str, environment: Mapping[str, str] | None = None) -> Process:
    """A command in a process group of its own, which has no Prefect server."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT")}
    return subprocess.Popen(
        [sys.executable, "-m", *command.split()],
        env=clean | {"PYTHONPATH": str(ROOT)} | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def stopped(process: Process, by: signal.Signals) -> str:
    """What a command says after a signal to its group, by which it must end and leave nothing."""
    below = descendants(process.pid)
    os.killpg(process.pid, by)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == (128 + by if by != signal.SIGKILL else -by)
    assert [each for each in below if not ends(each)] == []
    return said


@pytest.mark.parametrize("by", STOPS, ids=lambda by: by.name)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_stopped_while_it_imports_says_one_line(
    folder: Path, command: str, by: signal.Signals
) -> None:
    Path("argparse.py").write_text(HANGING)  # which all of them import
    process = start(command, {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])})
    until(Path("imports").exists, every=0.02)
    assert stopped(process, by) == f"stopped by {by.name}\n"


def test_a_command_that_a_closed_terminal_must_not_end_goes_on(folder: Path) -> None:
    Path("argparse.py").write_text(HANGING)
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"  # as nohup does
    program += "; import os, sys; os.execv(sys.executable, [sys.executable, '-m', 'flows.preset', 'smoke'])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as process:
        until(Path("imports").exists, every=0.02)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_a_second_signal_while_a_command_ends_adds_no_line() -> None:
    program = (
        "import os, signal; from flows import signals; signals.end_at_once(); write = os.write;"
        "os.write = lambda *line: (write(*line), signal.raise_signal(signal.SIGTERM));"
        "signal.raise_signal(signal.SIGINT)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "stopped by SIGINT\n")


SERVER = """
import sys
from cocomix.plumbing.errors import UserError
from flows import signals
from flows.children import start_server
with signals.end_in_order():
    start_server([sys.executable, "-c", {program!r}], "http://127.0.0.1:1", {{"PREFECT_HOME": ".prefect"}})
"""


@pytest.mark.parametrize("by", [*STOPS, signal.SIGKILL], ids=lambda by: by.name)
@pytest.mark.parametrize("deaf", [False, True])
def test_a_server_that_is_starting_ends_with_the_command_that_started_it(
    folder: Path, by: signal.Signals, deaf: bool
) -> None:
    program = "import signal; [signal.signal(each, signal.SIG_IGN) for each in (1, 2, 15)];" if deaf else ""
    script = f"import sys; sys.argv[0] = '-m'\n{SERVER.format(program=program + HANGING)}"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    until(Path("imports").exists, every=0.02)
    assert stopped(process, by) == ("" if by == signal.SIGKILL else f"stopped by {by.name}\n")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "by",
    [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.slow) for each in (*STOPS[1:], signal.SIGKILL))],
    ids=lambda by: by.name,
)
def test_a_flow_that_is_stopped_while_its_server_starts_leaves_none(project: Path, by: signal.Signals) -> None:
    process = start("flows.pipeline")
    until(lambda: bool(descendants(process.pid)), every=0.02)
    assert stopped(process, by) == ("" if by == signal.SIGKILL else f"stopped by {by.name}\n")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("by", [*STOPS, signal.SIGKILL], ids=lambda by: by.name)
@pytest.mark.parametrize("command", ["flows.ui", "flows.serve"])
def test_what_runs_deployments_is_stopped_while_it_starts_and_later(
    project: Path, server: str, by: signal.Signals, command: str
) -> None:
    (project / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text().replace("[report]", "[number]"))
    given = {"PREFECT_SERVER_API_PORT": str(free_port())} if command == "flows.ui" else {"PREFECT_API_URL": server}
    with get_client(sync_client=True) as client:  # those of another test, in another folder, would be another owner's
        for each in client.read_deployments():
            client.delete_deployment(each.id)
    for seconds in (1, 4, 12, 30):
        process = start(command, given)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(seconds)
        said = stopped(process, by)
        assert said.endswith("" if by == signal.SIGKILL else f"stopped by {by.name}\n")
        assert "Traceback" not in said
        assert "never awaited" not in said


def at_work() -> tuple[Process, int]:
    """A flow with a server of its own, and the process of its stage, which takes ten minutes."""
    set_params(number=1, wait=600)
    Path("number.py").write_text(SCRIPTS["wait.py"])
    process = start("flows.pipeline number")
    assert process.stdout
    while "> exec python number.py" not in process.stdout.readline():
        assert process.poll() is None
    return process, wait_for_pid()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("by", [*STOPS, signal.SIGKILL], ids=lambda by: by.name)
def test_a_flow_that_is_stopped_during_a_stage_says_one_more_line(project: Path, by: signal.Signals) -> None:
    process, stage = at_work()
    assert stopped(process, by) == ("" if by == signal.SIGKILL else f"stopped by {by.name}\n")
    assert ends(stage)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_flow_whose_server_is_killed_ends_and_says_so(project: Path) -> None:
    process, stage = at_work()
    below = descendants(process.pid)
    server = next(each for each in below if "--port" in command_of(each))
    os.kill(server, signal.SIGKILL)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert said.endswith(f"error: Prefect's server ended by itself; see {project / '.prefect/server.log'}\n")
    assert "Traceback" not in said
    assert ends(stage)
    assert [each for each in below if not ends(each)] == []


def test_dvc_of_a_flow_that_was_killed_ends_before_it_has_imported_anything(folder: Path) -> None:
    Path("argparse.py").write_text(HANGING)
    process = start("flows.dvc repro", {"FLOW_PID": "1", "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])})
    assert process.wait(PATIENCE) == -signal.SIGKILL


def test_make_run_waits_for_another_run_of_the_folder_and_says_whose_it_is(project: Path) -> None:
    with alone():
        process = start("flows.dvc repro number")
        assert process.stdout
        waits = process.stdout.readline()
        time.sleep(0.5)
        assert process.poll() is None
    assert waits.startswith(f"another run is at work in this folder (process {os.getpid()}: python ")
    assert waits.endswith("): waiting for it to end\n")
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert Path("number.txt").read_text() == "1"


def test_make_run_that_waits_ends_by_a_signal(project: Path) -> None:
    with alone():
        process = start("flows.dvc repro number")
        assert process.stdout
        process.stdout.readline()
        assert stopped(process, signal.SIGINT) == "stopped by SIGINT\n"


@pytest.mark.slow
def test_make_run_waits_for_a_dvc_that_somebody_has_typed(project: Path) -> None:
    set_params(number=1, wait=600)
    typed = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], stdout=subprocess.DEVNULL)
    stage = wait_for_pid()
    process = start("flows.dvc repro")
    assert process.stdout
    waits = process.stdout.readline()
    assert waits.startswith(f"another DVC is at work in this folder (process {typed.pid}: ")
    set_params(number=1)  # before the one that waits reads them
    os.kill(stage, signal.SIGTERM)
    typed.wait(PATIENCE)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert Path("wait.txt").read_text() == "done"


def test_a_process_that_has_the_number_of_a_dvc_that_was_killed_is_none(folder: Path) -> None:
    Path("dvc.py").write_text("import time; print(flush=True); time.sleep(600)")
    Path(".dvc/tmp").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "dvc.py"], stdout=subprocess.PIPE) as dvc:
        assert dvc.stdout
        dvc.stdout.readline()
        for mode, process, works in (("write", dvc.pid, True), ("read", dvc.pid, True), ("write", os.getpid(), False)):
            entry = {"pid": process, "cmd": "dvc repro"}
            locks = {mode: {"/number.txt": entry if mode == "write" else [entry]}}
            Path(".dvc/tmp/rwlock").write_text(json.dumps(locks))
            assert dvc_at_work() == (f"process {process}: dvc repro" if works else "")
        dvc.kill()
