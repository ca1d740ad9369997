import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.serialize import dump_yaml, load_yaml
from hypothesis import given
from hypothesis import strategies as st

from flows.merge import merged
from tests.flows.conftest import DVC_YAML, ROOT

ENTRIES = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2))


OUTS = 'outs: ["each-${item.name}.txt", "metrics/${item.name}.json": {cache: false}]'
EACH = """
import os, pathlib, shutil, sys
name = sys.argv[1]
if not os.path.exists(f".tried-{name}"):
    open(f".tried-{name}", "w").close()
    os.kill(os.getpid(), 9)
shutil.copy("parity.txt", f"each-{name}.txt")
pathlib.Path(f"metrics/{name}.json").write_text(str(os.getpid()))
"""
"""A stage that is killed when it is first run in a clone, and whose figures differ from run to run."""


@given(ENTRIES, ENTRIES, ENTRIES)
def test_each_stage_is_as_the_side_has_it_that_changed_it(
    base: dict[str, int], ours: dict[str, int], theirs: dict[str, int]
) -> None:
    found, clashes = merged(base, ours, theirs)
    for name in "abcd":
        versions = {base.get(name), ours.get(name), theirs.get(name)}
        both = ours.get(name) != base.get(name) and theirs.get(name) != base.get(name)
        if both and ours.get(name) != theirs.get(name):
            assert name in clashes
            assert found.get(name) == ours.get(name)
        else:
            assert name not in clashes
            assert found.get(name) == (versions - {base.get(name)} or versions).pop()


def test_a_stage_that_both_sides_have_changed_is_named_and_git_calls_it_a_conflict(folder: Path) -> None:
    entry = {"cmd": "exec python a.py", "params": {"params.yaml": {"rate": 1e-05}}}
    for name, other in {"base": {}, "ours": {"b": {"cmd": "1"}}, "theirs": {"b": {"cmd": "2"}, "c": entry}}.items():
        dump_yaml(name, {"schema": "2.0", "stages": {"a": entry, **other}})
    command = [sys.executable, "-m", "flows.merge", "base", "ours", "theirs"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert done.stderr == "dvc.lock: both sides have changed b; ours stay: keep our metrics and plots too\n"
    assert load_yaml("ours") == {"schema": "2.0", "stages": {"a": entry, "b": {"cmd": "1"}, "c": entry}}


def git(*arguments: str) -> None:
    """Run git in the working directory, as somebody with a name and with the project's merge driver."""
    options = {
        "user.name": "a",
        "user.email": "a@example.org",
        "merge.dvc-lock.driver": f"{sys.executable} -m flows.merge %O %A %B",
    }
    flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    subprocess.run(["git", *flags, *arguments], check=True, capture_output=True)


def dvc(*arguments: str) -> str:
    """Run DVC in the working directory; return what it says."""
    command = [sys.executable, "-m", "flows.dvc", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def machines(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two clones, `one` and `two`, of a project whose first stages are in a DVC remote."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    first = tmp_path / "first"
    kept = [*project.iterdir()]
    first.mkdir()
    for each in kept:
        shutil.move(each, first)
    monkeypatch.chdir(first)
    Path("dvc.yaml").write_text(DVC_YAML.replace('outs: ["each-${item.name}.txt"]', OUTS))
    Path("each.py").write_text(EACH)
    shutil.copy(ROOT / ".gitattributes", first)
    Path(".gitignore").write_text("/*.txt\n/.dvc/cache\n/.dvc/tmp\n/artifacts\n.tried-*\n__pycache__\n")
    git("init", "-b", "main")
    subprocess.run([sys.executable, "-m", "dvc", "config", "core.no_scm", "true"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "remote", "add", "-d", "store", str(tmp_path / "store")], check=True)
    dvc("repro", "parity")
    dvc("push")
    git("add", "-A")
    git("commit", "-m", "First stages")
    for name in ("one", "two"):
        git("clone", str(first), str(tmp_path / name))
    return tmp_path


@pytest.mark.slow
def test_machines_that_each_train_a_part_are_merged_and_nothing_is_trained_again(
    machines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, stage in (("one", "each@x"), ("two", "each@y")):
        monkeypatch.chdir(machines / name)
        dvc("repro", "--pull", "parity")
        with pytest.raises(subprocess.CalledProcessError):
            dvc("repro", "--single-item", stage)
        dvc("repro", "--single-item", stage)
        dvc("push")
        git("add", "-A")
        git("commit", "-m", stage)
    monkeypatch.chdir(machines / "first")
    for name in ("one", "two"):
        git("pull", "--no-rebase", "--no-edit", str(machines / name), "main")
    said = dvc("repro", "--pull")
    assert [each for each in said.splitlines() if each.startswith("Running stage")] == ["Running stage 'wait':"]
    assert Path("each-x.txt").read_text() == Path("each-y.txt").read_text() == "1"
    assert not list(Path().glob(".tried-*"))
