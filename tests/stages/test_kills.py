"""Every stage, killed at random times, ends with the bytes of an undisturbed run."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.killing import content, forget
from tests.stages.project import OUTS, Project, words

STAGES = [stage for stage in OUTS if not stage.startswith("evaluate")]


def run_and_kill(project: Project, stage: str, how: signal.Signals, after: float) -> int:
    """Run a stage, and send it a signal some seconds after it took up its work; its exit status."""
    with project.start(" ".join(words(stage))) as process:
        lock = project.path / "artifacts/.work" / stage / "lock"
        while process.poll() is None and not (lock.exists() and lock.read_text() == str(process.pid)):
            time.sleep(0.01)
        try:
            return process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(how)
            return process.wait()


def check(project: Project, finished: Project, stage: str, chance: random.Random, kills: int, longest: float) -> None:
    forget(project, stage)
    for _ in range(kills):
        how = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        status = run_and_kill(project, stage, how, chance.uniform(0, longest))
        assert status in (0, -how, 128 + how)
    done = project.stage(*words(stage))
    assert done.returncode == 0, done.stderr
    out = Path("artifacts") / OUTS[stage]
    assert content(project.path / out) == content(finished.path / out)


@pytest.mark.slow
def test_a_stage_killed_twice_ends_with_the_same_bytes(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    check(project, finished, "pretrain@cocomix-0", random.Random(0), kills=2, longest=1.0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_many_times_ends_with_the_same_bytes(finished: Project, tmp_path: Path, stage: str) -> None:
    project = finished.copy(tmp_path / "project")
    for seed in range(4):
        check(project, finished, stage, random.Random(seed), kills=4, longest=6.0)


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
    for stage in STAGES:
        if stage != "report":  # it shows seconds
            out = f"artifacts/{OUTS[stage]}"
            assert content(project.path / out) == content(finished.path / out)
