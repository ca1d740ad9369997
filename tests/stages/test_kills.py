"""Every stage, killed at random times, ends with the bytes of an undisturbed run."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.stages.project import OUTS, Project

STAGES = {
    name.replace("@", " ").replace("-", " "): out for name, out in OUTS.items() if not name.startswith("evaluate")
}
"""The artifact of each stage, by its program and arguments."""


def content(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


def forget(project: Project, command: str) -> None:
    """As if the stage had never run."""
    shutil.rmtree(project.path / "artifacts" / STAGES[command])
    shutil.rmtree(project.path / "artifacts/.work" / work_folder(command))


def work_folder(command: str) -> str:
    stage, *item = command.split()
    return "@".join([stage, *(["-".join(item)] if item else [])])


def run_and_kill(project: Project, command: str, how: signal.Signals, after: float) -> int:
    """Run a stage, and send it a signal some seconds after it took up its work; its exit status."""
    with project.start(command) as process:
        folder = project.path / "artifacts/.work" / work_folder(command)
        while process.poll() is None and not list(folder.glob("*/files")):
            time.sleep(0.01)
        try:
            return process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(how)
            return process.wait()


def check(project: Project, finished: Project, command: str, chance: random.Random, kills: int, longest: float) -> None:
    forget(project, command)
    for _ in range(kills):
        how = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        status = run_and_kill(project, command, how, chance.uniform(0, longest))
        assert status in (0, -how, 128 + how)
    done = project.stage(*command.split())
    assert done.returncode == 0, done.stderr
    out = Path("artifacts") / STAGES[command]
    assert content(project.path / out) == content(finished.path / out)


@pytest.mark.parametrize("command", STAGES)
def test_a_stage_killed_twice_ends_with_the_same_bytes(finished: Project, tmp_path: Path, command: str) -> None:
    check(finished.copy(tmp_path / "project"), finished, command, random.Random(command), kills=2, longest=1.0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", STAGES)
def test_a_stage_killed_many_times_ends_with_the_same_bytes(finished: Project, tmp_path: Path, command: str) -> None:
    project = finished.copy(tmp_path / "project")
    for seed in range(4):
        check(project, finished, command, random.Random(seed), kills=4, longest=6.0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dvc_killed_at_random_times_ends_with_the_same_lock(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    shutil.rmtree(project.path / "artifacts")
    (project.path / "dvc.lock").unlink()
    shutil.rmtree(project.path / ".dvc/cache")
    chance = random.Random(0)
    for _ in range(12):
        with project.start_dvc("--wait-for-lock", "repro") as process:
            try:
                assert process.wait(timeout=chance.uniform(3, 20)) == 0
            except subprocess.TimeoutExpired:
                process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
        time.sleep(3)  # the stage notices, saves, and ends
    project.dvc("--wait-for-lock", "repro")
    for out in STAGES.values():
        if out != "report":  # it shows seconds
            assert content(project.path / "artifacts" / out) == content(finished.path / "artifacts" / out)
