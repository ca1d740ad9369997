"""The program that kills, for a moment; and for an hour."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from flows.plan import plan
from flows.reproduce import reproduce
from tests.faults.killing import kill_at_random, left_behind, locked
from tests.stages.project import Project


def test_a_handful_of_kills(finished: Project) -> None:
    print(kill_at_random(finished, seed=0, kills=3, seconds=20, stages=["corpus", "tokenize"]))  # they start soon


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills(finished: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tally = kill_at_random(finished, seed=1, kills=120, seconds=3000)
    with capsys.disabled():
        print(f"\n{tally}")
    assert tally.kills.total() >= 100


def test_killed_between_publishing_and_dvc_lock_nothing_is_computed_again(project: Project) -> None:
    before = locked(project, "methods")
    lock = project.path / "dvc.lock"
    text = lock.read_text()
    lock.write_text(text.replace("  methods:\n", "  forgotten:\n"))  # published, but not noted
    shutil.rmtree(project.path / "artifacts/methods")  # as DVC begins
    done = project.stage("methods")
    assert (done.returncode, done.stderr) == (0, "methods: already computed, publishing it\n")
    project.dvc("--wait-for-lock", "repro", "--single-item", "methods")
    assert locked(project, "methods") == before


def test_the_lock_of_a_process_that_lives_is_named_and_that_of_a_dead_one_is_none(project: Project) -> None:
    lock = project.path / "artifacts/.work/methods/lock"
    holder = "import fcntl, os, sys; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX); "
    holder += "f.truncate(); f.write(str(os.getpid())); f.flush(); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        refused = project.stage("methods")
        process.send_signal(signal.SIGKILL)
    assert refused.returncode == 2
    assert refused.stderr == (f"error: methods: process {process.pid} is already at work on this stage; wait for it\n")
    lock.write_text(str(os.getpid()))  # a process that lives, but that does not hold the lock
    assert project.stage("methods").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_flow_leaves_no_process_and_the_next_one_ends_what_it_began(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    project.change({"sae": {"k": 7}})
    command = [sys.executable, "-m", "flows.pipeline", "sae", "--mode", "only"]
    with subprocess.Popen(command, cwd=project.path, env=project.environment, start_new_session=True) as process:
        while not list((project.path / "artifacts/.work/sae").glob("*/scratch/*")) and process.poll() is None:
            pass
        process.kill()
    assert not left_behind(project, 30)
    assert locked(project, "sae") == locked(finished, "sae")
    project.run(*command)
    project.dvc("repro", "--single-item", "sae")
    assert locked(project, "sae") != locked(finished, "sae")


def test_a_list_of_locks_that_dvc_left_torn_stops_no_flow(project: Project) -> None:
    torn = project.path / ".dvc/tmp/rwlock"
    for content in ("", '{"write": {"'):
        with chdir(project.path):
            torn.write_text(content)
            plan()
            torn.write_text(content)
            assert reproduce("methods", print).outcome == "up to date"


def test_where_dvc_lock_is_torn_it_can_go_and_what_is_finished_is_published_again(project: Project) -> None:
    lock = project.path / "dvc.lock"
    before = locked(project, "sae")
    text = lock.read_text()
    lock.write_text(text[: text.index("size") + 1])
    command = ["sh", "-c", "python -m dvc --wait-for-lock repro --single-item --no-run-cache sae 2>&1"]
    done = subprocess.run(command, cwd=project.path, env=project.environment, capture_output=True, text=True)
    assert (done.returncode, "'./dvc.lock' is invalid" in done.stdout) == (255, True), done.stdout
    lock.unlink()
    assert "sae: already computed, publishing it" in project.run(*command)
    assert locked(project, "sae") == before
