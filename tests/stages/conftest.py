"""The project in a temporary folder, run once at smoke size, and shared by all tests and workers."""

import fcntl
import shutil
import subprocess
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from ruamel.yaml import YAML

from tests.stages.project import Project

ROOT = Path(__file__).parents[2]
CORPUS = {
    "source": "files",
    "files": {"paths": ["texts/*.txt"]},
    "megabytes": 0.15,
    "validation_share": 0.2,
}
"""In place of the installed documentation, which takes long to read: Python's help topics."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Project:
    """The project after `dvc repro`. Read only: `copy` it to change something."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    project = Project(shared / "finished")
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "finished.done").exists():
            _set_up(project)
            project.dvc("--wait-for-lock", "repro")
            (shared / "finished.done").touch()
    return project


def _set_up(project: Project) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        made = name.startswith(("metrics/", "plots/", "dvc.lock")) and not name.endswith("/.gitkeep")
        if made or not (ROOT / name).is_file():
            continue
        target = project.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    for name, text in topics.items():
        path = project.path / "texts" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    project.dvc("config", "core.no_scm", "true")
    project.change(YAML(typ="safe").load(ROOT / "presets/smoke.yaml"))
    project.change({"corpus": CORPUS})
