"""Bytes that change where nothing was written: what reads everything finds them, and its remedy works."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError
from flows.verify import Damage, cut_short, main, verify
from flows.workspace import alone
from tests.flows.conftest import ROOT

SCRIPT = """
import sys
from pathlib import Path
from cocomix.plumbing import artifact
from cocomix.plumbing.artifact import Work
artifact.COPIED_BYTES = int(sys.argv[1])
with Work("thing", Path("artifacts/thing"), {}, {}) as work:
    for name in ("deep/one", "two"):
        if not work.has(name):
            with work.write(name) as pending:
                pending.path.write_text(name * 100)
    if not work.finished:
        work.finish({"shape": [1]})
    work.publish()
"""


@pytest.fixture(params=[0, 1 << 20], ids=["linked", "copied"])
def project(folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: one artifact, which shares its files with the work, or is a copy."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Repo.init(no_scm=True).close()
    Path(".dvc/config").write_text("[core]\n    no_scm = True\n[cache]\n    type = hardlink\n")
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    Path("thing.py").write_text(SCRIPT)
    Path("dvc.yaml").write_text(
        f"stages:\n  thing:\n    cmd: exec {sys.executable} thing.py {request.param}\n    deps: [thing.py]\n"
        "    outs: [artifacts/thing]\n"
    )
    repro()
    assert verify(whole_cache=True) == []
    return folder


def repro() -> None:
    with Repo() as repo:
        repo.reproduce()


def flip(path: Path) -> None:
    """Change a byte, as a disk does: no time of the file changes."""
    times, mode = path.stat(), path.stat().st_mode
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(mode)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "pattern",
    [
        "artifacts/thing/deep/one",
        "artifacts/thing/manifest.json",
        "artifacts/.work/thing/*/files/two",
        ".dvc/cache/files/md5/*/*.dir",
        ".dvc/cache/files/md5/*/*[!r]",
    ],
)
def test_a_flipped_byte_is_found_and_what_is_removed_comes_back_as_it_was(
    project: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {each: each.read_bytes() for each in Path("artifacts/thing").rglob("*") if each.is_file()}
    path = next(Path().glob(pattern))
    flip(path)
    repro()  # it may say that all is well, and bring the damage back
    found = {each.path.resolve() for each in verify()}
    assert path.resolve() in found or not path.exists()
    monkeypatch.setattr(sys, "argv", ["verify"])
    with pytest.raises(SystemExit) as end:
        main()
    assert re.match("damaged places: [1-9][0-9]*; `python -m flows.verify --remove`, then `dvc repro`", str(end.value))
    monkeypatch.setattr(sys, "argv", ["verify", "--remove"])
    main()
    repro()
    assert {each: each.read_bytes() for each in Path("artifacts/thing").rglob("*") if each.is_file()} == before
    assert verify(whole_cache=True) == []
    Artifact(Path("artifacts/thing")).verified()


def test_files_that_are_missing_cut_or_not_of_the_artifact_are_named(project: Path) -> None:
    folder = Path("artifacts/thing")
    for name, content in (("deep/one", None), ("two", b"tw"), ("three", b"")):
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
    assert {str(each) for each in verify()} == {
        "artifacts/thing/deep/one: missing",
        "artifacts/thing/two: altered since it was written",
        "artifacts/thing/three: not of this artifact",
    }
    assert cut_short() == ["artifacts/thing/deep/one: missing; remove artifacts/thing and run the stage 'thing' again"]


def test_an_artifact_that_is_gone_is_named_and_so_is_its_manifest(project: Path) -> None:
    folder = Path("artifacts/thing")
    (folder / "manifest.json").unlink()
    assert list(map(str, verify())) == ["artifacts/thing/manifest.json: missing"]
    shutil.rmtree(folder)
    assert list(map(str, verify())) == ["artifacts/thing: missing"]
    repro()
    assert verify() == []


def test_what_is_removed_is_read_while_no_other_run_may_make_it_anew(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(Path("artifacts/thing/two"))

    def checked(**options: bool) -> list[Damage]:
        with pytest.raises(UserError, match="another run is at work in this folder"), alone():
            pass
        return verify(**options)

    monkeypatch.setattr("flows.verify.verify", checked)
    monkeypatch.setattr(sys, "argv", ["verify", "--remove"])
    main()
    assert not Path("artifacts/thing").exists()


def test_nothing_to_verify_is_no_damage(folder: Path) -> None:
    Repo.init(no_scm=True).close()
    assert verify() == []
