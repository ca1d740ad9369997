"""A clock that is set while a stage works, and files that are dated in the future."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.killing import content, forget, locked
from tests.stages.project import OUTS, Project
from tests.stages.test_pipeline import changed, ran

DAY = 86_400
JUMPING = f"""
import itertools, time

def jumping(clock, day):
    readings = itertools.count()
    return lambda: clock() + (0, -day, day)[next(readings) // 10 % 3]

time.time, time.time_ns = jumping(time.time, {DAY}), jumping(time.time_ns, {DAY} * 10**9)
"""
"""Python runs it at its start. Each ten readings, the clock is set back by a day, then two days forward, then right."""

INTERVALS = re.compile(r" \[(-?[\d:]+)(?:<(-?[\d:]+|\?))?, ")
"""In a line of progress: the time that has passed, and the time left."""


@pytest.fixture
def jumping(tmp_path: Path) -> dict[str, str]:
    """The variables under which a program has that clock."""
    folder = tmp_path / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(JUMPING)
    environment = {"PYTHONPATH": str(folder)}
    read = "import time; now = [time.time() for _ in range(30)]; print(max(now) - min(now))"
    printed = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True).stdout
    assert float(printed) > 1.9 * DAY
    return environment


@pytest.mark.slow
@pytest.mark.parametrize("stage", OUTS)
def test_a_clock_that_jumps_changes_neither_a_stage_nor_what_it_shows(
    project: Project, finished: Project, jumping: dict[str, str], stage: str
) -> None:
    forget(project, stage)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", "--no-run-cache", stage]
    environment = project.environment | jumping | {"COCOMIX_LOG_SECONDS": "0.001"}
    done = subprocess.run(command, cwd=project.path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ran(done.stdout) == {stage}
    out = f"artifacts/{OUTS[stage]}"
    assert content(project.path / out) == content(finished.path / out)
    assert locked(project, stage) == locked(finished, stage)
    intervals = [each for match in INTERVALS.finditer(done.stderr) for each in match.groups() if each]
    assert all(re.fullmatch(r"\d\d:\d\d|\?", each) for each in intervals), intervals
    assert intervals or stage in ("base_tokens", "methods", "report"), done.stderr
    again = subprocess.run(command, cwd=project.path, env=environment, capture_output=True, text=True)
    assert ran(again.stdout) == set()


def test_files_dated_in_the_future_are_neither_made_again_nor_taken_for_others(
    finished: Project, tmp_path: Path
) -> None:
    project = finished.copy(tmp_path / "project", linked=False)
    tomorrow = time.time() + DAY
    for each in project.path.rglob("*"):
        os.utime(each, (tomorrow, tomorrow))
    assert changed(project) == set()
    project.change({"sae": {"k": 7}})
    assert changed(project) == {"sae", "report"}
