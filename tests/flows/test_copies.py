import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo

from cocomix.plumbing.provenance import provenance
from flows.copies import copy_for, remove_finished, update
from flows.reproduce import reproduce

FOLDER = copy_for("mine", "a setting")
PARAMS = b"sae: {seed: 3}\n"


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def model(project: Path) -> Path:
    """A file of an artifact."""
    file = Path("artifacts/models/ntp-0/weights")
    file.parent.mkdir(parents=True)
    file.write_text("weights")
    return file


def test_a_copy_has_parameters_of_its_own_and_links_to_artifacts(model: Path) -> None:
    before = Path("params.yaml").read_bytes()
    update(FOLDER, PARAMS)
    assert (FOLDER / "params.yaml").read_bytes() == PARAMS
    assert (FOLDER / model).samefile(model)
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.parametrize("setting", ["", "[cache]\n dir = ../store\n"])
def test_a_copy_uses_the_cache_of_the_project(project: Path, setting: str) -> None:
    Path(".dvc/config").write_text(f"[core]\n no_scm = true\n{setting}")
    update(FOLDER, PARAMS)
    with Repo() as own, Repo(str(FOLDER)) as of_copy:
        assert of_copy.cache.local.path == own.cache.local.path
        assert of_copy.stage_cache.cache_dir == own.stage_cache.cache_dir


def test_artifacts_that_cannot_be_linked_are_copied(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Path, _target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    update(FOLDER, PARAMS)
    assert (FOLDER / model).read_text() == "weights"


def test_a_copy_has_texts_that_a_person_keeps_among_the_artifacts(project: Path) -> None:
    (project / "artifacts").mkdir()
    (project / "artifacts/near.txt").write_text("text")
    update(FOLDER, PARAMS)
    assert (FOLDER / "artifacts/near.txt").read_text() == "text"


def test_what_a_copy_has_finished_comes_back_after_its_removal(project: Path) -> None:
    update(FOLDER, Path("params.yaml").read_bytes())
    assert reproduce("number", lambda _: None, folder=FOLDER).outcome == "ran"
    remove_finished([FOLDER])
    assert not FOLDER.exists()
    assert reproduce("number", lambda _: None).outcome == "restored"


def test_metrics_that_are_made_in_a_copy_name_the_commit(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("init", "--quiet")
    Path(".gitignore").write_text("artifacts\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    update(FOLDER, Path("params.yaml").read_bytes())
    monkeypatch.chdir(FOLDER)
    assert provenance()["commit"] == git("rev-parse", "--short=12", "HEAD")


def test_a_copy_of_a_worktree_leaves_the_entry_of_the_worktree_alone(project: Path) -> None:
    Path(".git").write_text("gitdir: /elsewhere/.git/worktrees/this\n")
    update(FOLDER, PARAMS)
    assert not (FOLDER / ".git").exists()


@pytest.mark.parametrize("name", ["a/b", "../..", "a" * 300, "name\u00e9 \u4e2d", "-x", "."])
def test_any_name_of_a_setting_has_a_folder_of_its_own_among_the_copies(name: str) -> None:
    folder = copy_for("mine", name)
    assert folder.parent == FOLDER.parent
    assert len(folder.name) < 100
    assert len({folder, copy_for("other", name), copy_for("mine", name + " ")}) == 3
