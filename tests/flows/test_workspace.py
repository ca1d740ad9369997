import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from cocomix.plumbing.errors import UserError
from flows import workspace
from flows.dag import read_dag
from flows.overrides import override
from flows.reproduce import reproduce
from flows.run_cache import remember
from flows.workspace import BEFORE, SAVED, TORN, alone, kept
from tests.flows.conftest import set_params

PARAMS, LOCK = Path("params.yaml"), Path("dvc.lock")

KILLED_SWEEP = """
import os
from pathlib import Path
from dvc.repo import Repo
from flows.workspace import kept

with kept() as write:
    write(Path("params.yaml").read_bytes().replace(b"seed: 1\\n", b"seed: 5\\n"))
    Repo().reproduce("number")
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def finished(project: Path) -> Path:
    """The project with its first stage only, which has run."""
    dag = Path("dvc.yaml")
    dag.write_text(dag.read_text().partition("  parity:")[0])
    repro()
    return project


@pytest.fixture
def killed(finished: Path) -> dict[str, bytes]:
    """What there was before a sweep, which was then killed: other parameters and results are there now."""
    before = there()
    sweep = subprocess.run([sys.executable, "-c", KILLED_SWEEP], env=os.environ, stdout=subprocess.DEVNULL, check=False)
    assert sweep.returncode == -signal.SIGKILL
    assert all(content != before[name] for name, content in there().items())
    return before


def repro() -> None:
    with Repo() as repo:
        repo.reproduce("number")


def there() -> dict[str, bytes]:
    """What a sweep must leave as it was."""
    return {name: Path(name).read_bytes() for name in ("params.yaml", "dvc.lock", "number.txt", "metrics/number.json")}


def alone_says() -> list[str]:
    """The lines of one that takes the folder."""
    said: list[str] = []
    with alone(say=said.append):
        pass
    return said


def test_what_a_killed_sweep_left_is_put_back_before_a_flow_reads_or_writes_parameters(
    killed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    with alone():
        assert there() == killed
        override({"sae.k": 16})
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "a sweep was killed here: params.yaml, dvc.lock and results are put back as they were before it"
    assert PARAMS.read_bytes() == killed["params.yaml"].replace(b"  k: 32 ", b"  k: 16 ")
    assert alone_says() == []
    assert there() == killed | {"params.yaml": PARAMS.read_bytes()}


def test_an_edit_after_a_sweep_was_killed_stays_and_what_was_before_the_sweep_is_kept_for_ever(
    killed: dict[str, bytes],
) -> None:
    set_params(number=7)
    left = there()
    assert alone_says() == [
        "params.yaml was edited after a sweep had written it: it stays; as it was before, it is "
        "artifacts/.work/sweep/before-1/params.yaml"
    ]
    assert alone_says() == []
    with kept() as write:
        write(killed["params.yaml"])
    assert there() == left
    assert (SAVED / "before-1/params.yaml").read_bytes() == killed["params.yaml"]


def test_parameters_that_a_person_put_back_after_a_kill_are_no_edit(killed: dict[str, bytes]) -> None:
    PARAMS.write_bytes(killed["params.yaml"])
    left = there()
    assert alone_says() == []
    assert there() == left
    assert not BEFORE.exists()


def test_one_that_is_killed_while_it_puts_back_is_followed_by_one_that_ends_it(
    killed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "Repo", interrupt)
        with pytest.raises(KeyboardInterrupt):
            alone_says()
    assert PARAMS.read_bytes() == killed["params.yaml"]
    assert there() != killed
    assert len(alone_says()) == 1
    assert there() == killed


def interrupt(**_: object) -> None:
    raise KeyboardInterrupt


def test_an_edit_while_a_sweep_is_at_work_stays_and_all_else_is_put_back(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = there()
    with kept() as write:
        write(before["params.yaml"].replace(b"seed: 1\n", b"seed: 5\n"))
        repro()
        set_params(number=7)
        edited = PARAMS.read_bytes()
        with pytest.raises(UserError, match=r"^params\.yaml: edited while the sweep was at work"):
            write(before["params.yaml"])
    assert there() == before | {"params.yaml": edited}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("it stays; as it was before, it is artifacts/.work/sweep/before-1/params.yaml")
    assert (SAVED / "before-1/params.yaml").read_bytes() == before["params.yaml"]


def test_a_sweep_that_wrote_nothing_puts_nothing_back(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with kept():
        set_params(number=7)
        edited = PARAMS.read_bytes()
    assert PARAMS.read_bytes() == edited
    assert capsys.readouterr().err == ""
    assert not BEFORE.exists()


def test_a_torn_dvc_lock_is_put_aside_where_a_run_begins(finished: Path) -> None:
    remember()
    whole = LOCK.read_bytes()
    for size in (0, len(whole) // 2, whole.index(b"hash: m") + len(b"hash: m"), len(whole) - 1):
        LOCK.write_bytes(whole[:size])
        assert alone_says() == [
            "dvc.lock was not whole and is now dvc.lock.torn: what is finished is published again, not computed"
        ]
        assert (LOCK.exists(), TORN.read_bytes()) == (False, whole[:size])
    assert {name: each.reasons for name, each in read_dag().items()}["number"] == ("never run",)
    LOCK.write_bytes(whole[:-1])
    assert reproduce("number", lambda _: None).outcome == "restored"  # from DVC's run cache
    assert LOCK.read_bytes() == whole
    assert alone_says() == []


def test_who_only_reads_leaves_torn_files_alone_and_says_what_helps(finished: Path) -> None:
    held = Path(".dvc/tmp/rwlock")
    held.write_text('{"write": {"')
    assert read_dag()["number"].reasons == ()
    assert held.read_text() == '{"write": {"'
    torn = LOCK.read_bytes()[:-20]
    LOCK.write_bytes(torn)
    message = r"^dvc\.lock: not whole, as after a kill of DVC; remove it, as a flow does: what is finished is published"
    with pytest.raises(UserError, match=message):
        read_dag()
    assert LOCK.read_bytes() == torn
    assert alone_says()
    assert not held.exists()


def test_where_a_run_begins_what_a_killed_dvc_held_is_forgotten_and_what_a_living_one_holds_is_not(
    finished: Path,
) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    killed, living = ({"pid": pid, "cmd": "dvc repro"} for pid in (dead.pid, os.getpid()))
    held = Path(".dvc/tmp/rwlock")
    for mode, holder in (("read", [killed]), ("write", killed)):
        held.write_text(json.dumps({mode: {str(finished / "number.txt"): holder}}))
        assert alone_says() == []
        assert not held.exists()
    text = json.dumps({"read": {str(finished / "number.txt"): [killed, living]}})
    held.write_text(text)
    assert alone_says() == []
    assert held.read_text() == text


def test_what_another_dvc_holds_can_be_read(finished: Path) -> None:
    held = {str(finished / "number.txt"): {"pid": os.getpid(), "cmd": "another dvc"}}
    Path(".dvc/tmp/rwlock").write_text(str({"write": held}).replace("'", '"'))
    assert read_dag()["number"].reasons == ()


def test_the_folder_has_one_user_at_a_time_and_who_is_not_to_wait_is_refused(finished: Path) -> None:
    message = rf"^another run is at work in this folder \(process {os.getpid()}: python .*\); wait for it$"
    with alone(), pytest.raises(UserError, match=message), kept():
        pass


def test_a_command_that_is_no_text_can_lock_the_folder(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "flows.preset", "\udcff\u00e9"])
    with alone(), pytest.raises(UserError, match=r"python -m flows\.preset \\udcff\u00e9\)"), alone():
        pass
