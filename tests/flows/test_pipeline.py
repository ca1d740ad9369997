import json
import os
import shutil
import signal
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State, TaskRun

from cocomix.plumbing.dialect import load_yaml
from cocomix.plumbing.runtime import runtime
from flows.pipeline import command_line, custom, main, pipeline
from flows.server import RUNNER_PID
from flows.shares import Share
from tests.flows.conftest import DVC_YAML, ROOT, set_params
from tests.flows.test_ends import start, stopped
from tests.flows.test_reproduce import ends, wait_for_pid
from tests.flows.test_ui import until


def tasks(final: State[Any]) -> list[TaskRun]:
    """The task runs of a flow that has ended, as the server knows them."""
    with get_client(sync_client=True) as client:
        return [run for run in client.read_task_runs() if run.flow_run_id == final.state_details.flow_run_id]


def states(*stages: str, **options: Any) -> dict[str, str]:
    """Run the flow; the state names of its tasks, and of the flow itself as `flow`."""
    final = pipeline(stages, **options, return_state=True)
    return {run.name: run.state_name or "" for run in tasks(final)} | {"flow": final.name or ""}


def artifacts(final: State[Any]) -> dict[str, Any]:
    """The content of what a flow published last, by key."""
    run = final.state_details.flow_run_id
    assert run
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run])))
    return {each.key or "": each.data for each in sorted(found, key=attrgetter("created"))}


def test_each_stage_is_a_task_and_shows_what_dvc_did(project: Path, server: str) -> None:
    assert states("each") == {
        "number": "Completed",
        "parity": "Completed",
        "each@x": "Completed",
        "each@y": "Completed",
        "flow": "Completed",
    }
    set_params(number=3)
    assert states("each") == {
        "number": "Completed",
        "parity": "Completed",
        "each@x": "Up to date",  # the parity did not change
        "each@y": "Up to date",
        "flow": "Completed",
    }
    set_params(number=1)
    assert states("number") == {"number": "Restored", "flow": "Completed"}
    Path("parity.txt").unlink()
    assert states("number", mode="only") == {"number": "Up to date", "flow": "Completed"}
    assert states("parity", mode="downstream") == {
        "parity": "Restored",
        "each@x": "Up to date",
        "each@y": "Up to date",
        "wait": "Completed",
        "flow": "Completed",
    }


def test_a_run_publishes_its_parameters_figures_and_progress(project: Path, server: str) -> None:
    comments = Path("params.yaml").read_text().count("#")
    final = pipeline(("number",), overrides=("sae.seed=7",), return_state=True)
    assert final.message == "1 completed"
    written = Path("params.yaml").read_text()
    assert written.count("#") == comments
    published = artifacts(final)
    assert published["parameters"] == f"Given for this run:\n\n```\nsae.seed: 7\n```\n\n```\n{written}\n```"
    table = json.loads(published["metrics-number"])
    assert {"metric": "number", "value": "7"} in table
    assert {"metric": "of.many", "value": "100 values"} in table
    assert float(published["progress-number"]) == 100


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sae.sed": 1}, "overrides: sae.sed: unknown key; did you mean 'seed'?"),
        ({"sae": {"seed": "x"}}, "overrides: sae.seed: 'x': input should be a valid integer"),
    ],
)
def test_wrong_overrides_fail_the_flow_in_one_line_before_anything_runs(
    project: Path, server: str, overrides: dict[str, Any], message: str
) -> None:
    before = Path("params.yaml").read_bytes()
    final = custom(overrides=overrides, return_state=True)
    assert final.message == message
    assert Path("params.yaml").read_bytes() == before
    assert tasks(final) == []


def test_a_failing_stage_ends_the_flow_with_its_own_words_and_is_not_tried_again(
    project: Path, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    set_params(number=13)
    final = pipeline(return_state=True)
    assert final.is_failed()
    assert final.message == "number: params.yaml: sae.seed: 13: must not be 13"
    assert [run.name for run in tasks(final)] == ["number"]
    assert retries(caplog) == []


def test_a_killed_stage_is_tried_again(project: Path, server: str, caplog: pytest.LogCaptureFixture) -> None:
    Path("kill").touch()
    assert pipeline(("number",), return_state=True).is_completed()
    assert len(retries(caplog)) == 1
    assert retries(caplog)[0].startswith("killed: ")


def test_a_stage_that_is_killed_at_each_try_fails_as_killed(
    project: Path, server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flows.tasks.RETRY_SECONDS", (0, 0))
    Path("number.py").write_text("import os; os.kill(os.getpid(), 9)")
    assert states("number") == {"number": "Killed", "flow": "Failed"}
    assert len(retries(caplog)) == 2


def retries(log: pytest.LogCaptureFixture) -> list[str]:
    """The lines of a log that announce another try of a stage."""
    return [line for line in log.messages if "; once more in " in line]


def test_a_stage_that_lacks_memory_gets_smaller_micro_batches(project: Path, server: str) -> None:
    Path("full").touch()
    assert states("number") == {"number": "Completed", "flow": "Completed"}


def test_a_lack_of_memory_for_one_window_is_an_error(
    project: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("number.py").write_text('raise MemoryError("no")')
    monkeypatch.setenv("COCOMIX_MICRO_BATCH", "1")
    runtime.cache_clear()
    assert pipeline(("number",), return_state=True).message == "number: MemoryError: no"


def test_an_unknown_stage_fails_the_flow_in_one_line_and_sets_no_parameter(project: Path, server: str) -> None:
    before = Path("params.yaml").read_bytes()
    final = pipeline(("nmber",), overrides=("sae.seed=7",), return_state=True)
    assert final.message == "nmber: no such stage in dvc.yaml; did you mean 'number'?"
    assert Path("params.yaml").read_bytes() == before


def test_parameters_are_set_by_one_option_or_by_several() -> None:
    assert command_line(["sae", "--set", "sae.k=1", "sae.seed=2", "--set", "base.seed=3"]).set == [
        "sae.k=1",
        "sae.seed=2",
        "base.seed=3",
    ]
    assert command_line(["--set", "sae.k=1", "--mode", "only", "sae"]).stages == ["sae"]
    assert command_line([]).set == []


@pytest.mark.parametrize("program", ["flows.pipeline", "flows.serve"])
def test_a_server_that_is_not_there_is_told_in_one_line(project: Path, program: str) -> None:
    (project / "prefect.yaml").write_bytes((ROOT / "prefect.yaml").read_bytes())
    address = "http://127.0.0.1:1/api/"
    run = subprocess.run(
        [sys.executable, "-m", program], env=os.environ | {"PREFECT_API_URL": address}, capture_output=True, text=True
    )
    assert run.stderr == (
        f"error: PREFECT_API_URL: {address}: [Errno 111] Connection refused; `make ui` starts a server\n"
    )
    assert run.returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_run_of_a_deployment_ends_when_what_started_it_is_gone(project: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "from flows.pipeline import pipeline; pipeline.fn()"],
        env=os.environ | {"PREFECT__RUNTIME__DEPLOYMENT__ID": "any", RUNNER_PID: "1"},
        stderr=subprocess.DEVNULL,
    )
    assert run.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_sigterm_ends_the_running_stage_and_the_same_command_goes_on(project: Path, server: str) -> None:
    set_params(number=1, wait=60)
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline"],
        env=os.environ | {"PREFECT_API_URL": server},
        stderr=subprocess.DEVNULL,
    )
    try:
        stage = wait_for_pid()
    finally:
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


MEETING = """
import os, pathlib, signal, sys, time
from cocomix.plumbing.parent import end_with_parent
end_with_parent(os.getppid(), signal.SIGTERM)
signal.signal(signal.SIGINT, signal.SIG_DFL)
pathlib.Path(f"began-{sys.argv[1]}").write_text(os.environ.get("COCOMIX_PROCESSES", "all"))
pathlib.Path(f"pid-{sys.argv[1]}").write_text(str(os.getpid()))
while len(list(pathlib.Path().glob("began-*"))) < 2:
    time.sleep(0.05)
if os.path.exists(f"fail-{sys.argv[1]}"):
    raise SystemExit("error: no")
time.sleep(600 if os.path.exists("hang") else 0)
pathlib.Path(f"each-{sys.argv[1]}.txt").write_text(pathlib.Path("parity.txt").read_text())
"""
"""A stage of a matrix that ends only if the other one has begun."""


@pytest.fixture
def two_at_a_time(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project without its first stages, with stages that wait for each other."""
    stages = yaml.safe_load(DVC_YAML)["stages"]
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: stages[name] for name in ("each", "wait")}}))
    (project / "parity.txt").write_text("1")
    (project / "each.py").write_text(MEETING)
    monkeypatch.setenv("COCOMIX_TRAININGS", "2")
    return project


def test_trainings_run_at_the_same_time_and_dvc_records_what_it_does_of_one_after_another(
    two_at_a_time: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(states().values()) == {"Completed"}
    assert [Path(f"began-{each}").read_text() for each in "xy"] == ["1", "1"]  # a process each
    lock = load_yaml(Path("dvc.lock").read_text(), "dvc.lock")
    with Repo() as repo:
        assert repo.status() == {}

    Path("dvc.lock").unlink()
    for each in Path(".dvc/cache/runs").iterdir():
        shutil.rmtree(each)
    monkeypatch.delenv("COCOMIX_TRAININGS")
    runtime.cache_clear()
    assert set(states().values()) == {"Completed"}
    assert load_yaml(Path("dvc.lock").read_text(), "dvc.lock") == lock
    assert [Path(f"began-{each}").read_text() for each in "xy"] == ["all", "all"]


def test_a_failing_training_stops_what_needs_it_and_the_others_finish(
    two_at_a_time: Path, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    Path("fail-x").touch()
    final = pipeline(return_state=True)
    assert final.message == "each@x: no"
    assert {run.name: run.state_name for run in tasks(final)} == {"each@x": "Failed", "each@y": "Completed"}
    assert "wait: not run, because of each@x: no" in caplog.messages
    Path("fail-x").unlink()
    assert states() == {
        "each@x": "Completed",
        "each@y": "Up to date",
        "wait": "Completed",
        "flow": "Completed",
    }


@pytest.mark.parametrize(
    "by",
    [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGTERM, signal.SIGKILL))],
    ids=lambda by: by.name,
)
def test_all_trainings_end_with_their_flow_in_one_line_and_the_same_command_goes_on(
    two_at_a_time: Path, server: str, by: signal.Signals
) -> None:
    Path("hang").touch()
    flow = start("flows.pipeline --trainings 2", {"PREFECT_API_URL": server})
    until(lambda: all(Path(f"pid-{each}").exists() for each in "xy"))
    pids = [int(Path(f"pid-{each}").read_text()) for each in "xy"]
    said = stopped(flow, by)
    assert said.endswith("" if by == signal.SIGKILL else f"\nstopped by {by.name}\n")
    assert "Traceback" not in said
    assert all(ends(each) for each in pids)
    Path("hang").unlink()
    left = states()
    assert (left["each@x"], left["each@y"]) == ("Completed", "Completed")


@pytest.mark.parametrize("by", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_second_signal_while_trainings_stop_adds_no_line_and_leaves_nothing(
    two_at_a_time: Path, server: str, by: signal.Signals
) -> None:
    stop = "def stop(*_): pathlib.Path('stopping').touch(); time.sleep(2); raise SystemExit(1)"
    default = "signal.signal(signal.SIGINT, signal.SIG_DFL)"
    Path("each.py").write_text(MEETING.replace(default, f"{stop}\nsignal.signal(signal.SIGINT, stop)"))
    Path("hang").touch()
    flow = start("flows.pipeline --trainings 2", {"PREFECT_API_URL": server})
    until(lambda: all(Path(f"pid-{each}").exists() for each in "xy"))
    os.killpg(flow.pid, by)
    until(Path("stopping").exists, every=0.02)
    said = stopped(flow, by)
    assert said.count(f"stopped by {by.name}") == 1
    assert said.endswith(f"\nstopped by {by.name}\n")
    assert "Traceback" not in said


def test_a_stage_that_needs_the_whole_machine_waits_for_all_trainings(
    two_at_a_time: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("each.py").write_text(
        "import os, sys, time\n"
        "if sys.argv[1] == 'y':\n"
        "    while not os.path.exists('each-x.txt'): time.sleep(0.05)\n"
        "    time.sleep(1)\n"
        "open(f'each-{sys.argv[1]}.txt', 'w').close()\n"
    )
    monkeypatch.setenv("COCOMIX_TRAININGS", "4")
    final = pipeline(return_state=True)
    assert final.is_completed()
    runs = {run.name: run for run in tasks(final)}
    began, ended = runs["wait"].start_time, [runs[f"each@{each}"].end_time for each in "xy"]
    assert began
    assert all(each and each <= began for each in ended)


def test_a_training_that_is_killed_is_tried_again_beside_the_other(
    two_at_a_time: Path, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    Path("each.py").write_text(
        "import os, sys\n"
        "if sys.argv[1] == 'x' and not os.path.exists('began-x'):\n"
        "    open('began-x', 'w').close()\n"
        "    os.kill(os.getpid(), 9)\n" + MEETING
    )
    assert pipeline(("each",), return_state=True).is_completed()
    assert len(retries(caplog)) == 1


@pytest.mark.parametrize("number", ["0", "65537"])
def test_a_wrong_number_of_trainings_names_the_option(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line(["--trainings", number])
    assert capsys.readouterr().err.endswith(f"error: argument --trainings: {number}: must be from 1 to 65536\n")


def test_fewer_trainings_at_a_time_than_asked_are_told_in_one_line(
    project: Path, server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flows.tasks.shares", lambda: [Share({}, ())])
    monkeypatch.setenv("COCOMIX_TRAININGS", "2")
    assert pipeline(("number",), return_state=True).is_completed()
    assert caplog.messages.count("1 of 2 trainings run at a time, one for each GPU") == 1


def test_a_wrong_number_of_trainings_in_the_environment_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCOMIX_TRAININGS", "0")
    monkeypatch.setattr(sys, "argv", ["pipeline"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == "error: COCOMIX_TRAININGS: '0': input should be greater than or equal to 1"
