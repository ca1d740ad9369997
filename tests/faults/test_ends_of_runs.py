"""Runs of the real stages from Prefect, ended in each way that docs/operations.md names, end as if nothing had been."""

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import chdir, suppress
from pathlib import Path
from uuid import UUID

import pytest
from prefect.states import AwaitingRetry, Cancelling

from tests.faults.killing import begun, content, forget, left_behind, locked
from tests.flows.test_reproduce import ends
from tests.flows.test_ui import PATIENCE, Ui, descendants, free_port, of_command, start, until
from tests.stages.project import OUTS, Project


class Trial:
    """A run of one stage alone, as if it had never run, and its processes."""

    def __init__(self, project: Project, stage: str, port: int) -> None:
        self._project, self._stage, self._port = project, stage, port
        self._prefect = self._start()
        self._run: UUID

    def begin(self) -> None:
        """Start the run, and hold the stage's process still as soon as some of its work is there."""
        forget(self._project, self._stage)
        shutil.rmtree(self._project.path / ".dvc/cache/runs", ignore_errors=True)
        home = self._project.path / "artifacts/.work" / self._stage
        self._ask()
        until(lambda: bool(begun(home)), every=0.005)
        self._process = int((home / "lock").read_text())
        os.kill(self._process, signal.SIGSTOP)
        assert not list(home.glob("*/manifest.json")), f"{self._stage}: it was finished before it could be held"

    def cancel(self) -> None:
        """Cancel it as the UI does, and ask for another one."""
        self._prefect.client.set_flow_run_state(self._run, Cancelling())
        self._until_gone()
        self._prefect.until_state(self._run, "Cancelled")
        self._ask()

    def kill_run(self) -> None:
        """Kill the run's process, and retry it as the UI does."""
        below = self._kill("spawn_main")
        self._prefect.until_state(self._run, "Crashed")
        assert [each for each in below if not ends(each)] == []
        self._prefect.client.set_flow_run_state(self._run, AwaitingRetry(), force=True)

    def kill_server(self) -> None:
        """Kill Prefect's server, and start all of it again."""
        self._kill_and_restart("flows.gate")

    def kill_what_serves(self) -> None:
        """Kill what runs the deployments, and start all of it again."""
        self._kill_and_restart("flows.serve")

    def finish(self) -> None:
        """Wait for the run to end."""
        self._prefect.until_state(self._run, "Completed")

    def stop(self) -> None:
        """End Prefect by Ctrl-C."""
        self._prefect.process.send_signal(signal.SIGINT)
        self._prefect.process.wait(PATIENCE)

    def _start(self) -> Ui:
        return Ui(self._port, start(self._port, self._project.environment))

    def _ask(self) -> None:
        self._run = self._prefect.run(stages=[self._stage], mode="only")

    def _kill(self, command: str) -> list[int]:
        victim = of_command(command, self._prefect.process.pid)
        below = descendants(victim)
        os.kill(victim, signal.SIGKILL)
        self._until_gone()
        return below

    def _kill_and_restart(self, command: str) -> None:
        below = descendants(self._prefect.process.pid)
        self._kill(command)
        self._prefect.process.wait(PATIENCE)
        assert [each for each in below if not ends(each)] == []
        self._prefect = self._start()

    def _until_gone(self) -> None:
        """Let the stage go on once a signal has reached it, which must end it."""
        until(lambda: _is_signalled(self._process), every=0.005)
        with suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGCONT)
        assert ends(self._process)


def _is_signalled(process: int) -> bool:
    """Whether a signal waits for a process that is held still, or has ended it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return True
    said = dict(line.split(":\t") for line in lines if ":\t" in line)
    return said["State"].startswith("Z") or int(said["ShdPnd"], 16) != 0


WAYS: list[Callable[[Trial], None]] = [Trial.cancel, Trial.kill_run, Trial.kill_what_serves, Trial.kill_server]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("stage", ["base", "sae", "pretrain@cocomix-0", "evaluate@cocomix-0"])
def test_a_run_that_is_cancelled_or_killed_half_way_ends_with_the_same_bytes(
    finished: Project, tmp_path: Path, stage: str
) -> None:
    project = finished.copy(tmp_path / "project")
    out = f"artifacts/{OUTS[stage]}"
    with chdir(project.path):
        trial = Trial(project, stage, free_port())
        try:
            for end in WAYS:
                trial.begin()
                end(trial)
                trial.finish()
                assert content(project.path / out) == content(finished.path / out), end.__name__
                assert locked(project, stage) == locked(finished, stage), end.__name__
        finally:
            trial.stop()
    assert left_behind(project) == []
