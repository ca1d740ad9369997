"""Stage `steer` as a program: killed, and by several processes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stages.project import Project
from tests.stages.test_kills import content, forget

OUT = Path("artifacts/steering")
MORE = {"steer": {"strengths": [each for each in range(-20, 21) if each]}}


def shares(project: Project) -> dict[Path, int]:
    """The files of what has been measured of a sweep, and when they were written."""
    found = project.path.glob("artifacts/.work/steer/*/scratch/*/[0-9]*.safetensors")
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.mark.slow
def test_a_killed_sweep_goes_on_after_what_it_had_measured(finished: Project, tmp_path: Path) -> None:
    undisturbed, killed = (finished.copy(tmp_path / name) for name in ("undisturbed", "killed"))
    for project in (undisturbed, killed):
        project.change(MORE)
    kept: dict[Path, int] = {}
    for _ in range(2):
        with killed.start("steer") as process:
            while process.poll() is None and len(shares(killed)) < len(kept) + 2:
                time.sleep(0.01)
            process.kill()
        before, kept = kept, shares(killed)
        assert process.returncode == -9
        assert before.items() < kept.items()
    for project in (undisturbed, killed):
        done = project.stage("steer")
        assert done.returncode == 0, done.stderr
    assert content(killed.path / OUT) == content(undisturbed.path / OUT)
    assert content(killed.path / OUT) != content(finished.path / OUT)


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    forget(project, "steer")
    done = subprocess.run(
        [sys.executable, "-m", "stages.steer"],
        cwd=project.path,
        env=project.environment | {"COCOMIX_PROCESSES": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert content(project.path / OUT) == content(finished.path / OUT)
