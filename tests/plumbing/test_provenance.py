import subprocess
from pathlib import Path

import pytest

from cocomix.plumbing.provenance import provenance


def git(*arguments: str) -> str:
    """Run git as somebody, without a person's settings."""
    settings = ("-c", "user.name=somebody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *settings, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project inside the folder, in no repository yet."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    for name in ("cocomix/one.py", "stages/two.py", "params.yaml"):
        (path := folder / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    monkeypatch.chdir(folder / "project")
    return folder / "project"


def committed() -> str:
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    return git("rev-parse", "--short=12", "HEAD")


def test_without_git_or_a_repository_the_commit_is_unknown(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance()["commit"] == "unknown"
    committed()
    monkeypatch.setenv("PATH", "")
    assert provenance()["commit"] == "unknown"


def test_the_commit_is_that_of_the_code(project: Path) -> None:
    commit = committed()
    Path("notes.txt").write_text("no code")
    assert provenance()["commit"] == commit


@pytest.mark.parametrize("name", ["cocomix/one.py", "cocomix/new.py", "params.yaml"])
def test_changed_and_untracked_code_is_told(project: Path, name: str) -> None:
    commit = committed()
    Path(name).write_text("x = 2\n")
    assert provenance()["commit"] == f"{commit} and uncommitted changes"


def test_the_commit_of_a_repository_around_the_project_is_not_its_own(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.parent)
    Path(".gitignore").write_text("project\n")
    committed()
    monkeypatch.chdir(project)
    assert provenance()["commit"] == "unknown"
