"""Jobs of two processes, of which one is killed at random moments, end with the bytes of one that was left alone."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.faults.killing import begun, content, forget, left_behind
from tests.stages.project import OUTS, Project, words

KILLS = 12
END_SECONDS = 60.0
"""In which a job of which one process is killed must have ended, on a busy machine too."""


def start(project: Project, stage: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{words(stage)[0]}", *words(stage)[1:]],
        cwd=project.path,
        env=project.environment | {"COCOMIX_PROCESSES": "2"},
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_one(project: Project, stage: str, chance: random.Random) -> str:
    """Run a stage and kill its launcher or one of its two processes: what was hit and how, or "" if it had ended."""
    home = project.path / "artifacts/.work" / stage
    before = begun(home)
    with start(project, stage) as process:
        if chance.random() < 0.6:  # else: at any time of the start
            while process.poll() is None and begun(home) == before:
                time.sleep(0.02)
        time.sleep(chance.choice([0.3, 2.0, 8.0]) * chance.random())
        try:
            launcher = psutil.Process(process.pid)
            children = sorted(launcher.children(), key=lambda each: each.pid)
        except psutil.NoSuchProcess:
            return ""
        everyone = {"launcher": launcher, **dict(zip(("first", "second"), children, strict=False))}
        whom = chance.choice(list(everyone))
        how = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        if process.poll() is not None or not everyone[whom].is_running():
            return ""
        everyone[whom].send_signal(how)
        _, said = process.communicate(timeout=END_SECONDS)
    # Until the import that handles signals, a stage is an interpreter that starts, and Ctrl-C is Python's.
    is_starting = "stages/" not in said or "from stages.early import end_by_signals" in said
    assert "Traceback" not in said or is_starting, said
    assert not left_behind(project, END_SECONDS), f"{stage}: {whom} {how.name}"
    return f"{whom} {how.name}" if process.returncode else ""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", ["base", "activations", "sae", "attribution", "distribution", "pretrain@cocomix-0"])
def test_one_of_two_processes_killed_at_random_moments_costs_no_byte(
    finished: Project, tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project = finished.copy(tmp_path / "project")
    out = project.path / "artifacts" / OUTS[stage]
    forget(project, stage)
    with start(project, stage) as process:
        assert process.wait() == 0
    whole = content(out)
    chance, kills = random.Random(stage), Counter[str]()
    for _ in range(20 * KILLS):
        if kills.total() >= KILLS:
            break
        hit = kill_one(project, stage, chance)
        if hit:
            kills[hit] += 1
        else:
            assert content(out) == whole, f"{stage}: other bytes after {kills}"
            shutil.rmtree(project.path / "artifacts/.work" / stage)
            shutil.rmtree(out)
    with start(project, stage) as process:
        assert process.wait() == 0
    assert content(out) == whole, f"{stage}: other bytes after {kills}"
    with capsys.disabled():
        print(f"\n{stage}: {kills.total()} kills: {dict(kills)}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's end")
@pytest.mark.parametrize("whom", ["dvc", "stage", "launcher", "first", "second"])
def test_killed_at_any_moment_of_its_imports_a_stage_leaves_nothing_behind(
    finished: Project, tmp_path: Path, whom: str
) -> None:
    project = finished.copy(tmp_path / "project")
    forget(project, "pretrain@ntp-0")
    dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", "--no-run-cache", "pretrain@ntp-0"]
    alone = {"COCOMIX_PROCESSES": "1" if whom in ("dvc", "stage") else "2"}
    for tenth in range(0, 60, 2):
        with subprocess.Popen(
            dvc, cwd=project.path, env=project.environment | alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            stage = first_child(psutil.Process(process.pid))
            time.sleep(tenth / 10)
            several = sorted(stage.children(), key=lambda each: each.pid) if stage.is_running() else []
            victims = {"dvc": [psutil.Process(process.pid)], "stage": [stage], "launcher": [stage]}
            victims |= {"first": several[:1], "second": several[1:2]}
            for each in victims[whom]:
                each.kill()
            if not victims[whom]:  # its launcher has not started it yet
                stage.kill()
            said, _ = process.communicate(timeout=END_SECONDS)
        assert process.returncode, f"it ended before {tenth / 10} s"
        assert b"Traceback" not in said, said
        assert not left_behind(project, 30), f"after {tenth / 10} s"


def first_child(process: psutil.Process) -> psutil.Process:
    while not (found := process.children()):
        assert process.is_running()
        time.sleep(0.005)
    return found[0]
