import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from contextlib import chdir, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cocomix.plumbing import artifact as module
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Artifact, FileRecord, Work, write_atomically
from cocomix.plumbing.errors import UserError

OUT = Path("artifacts/thing")
SIDE = {"metrics.json": Path("metrics/thing.json")}


def make_work(**changed: object) -> Work:
    return Work(**{"stage": "thing", "out": OUT, "inputs": {"in": "abc"}, "params": {"k": 1}, "side": SIDE} | changed)  # type: ignore[arg-type]


def write(work: Work, name: str, content: bytes) -> None:
    with work.write(name) as pending:
        pending.path.write_bytes(content)
        pending.rows = len(content)


def make(work: Work, upto: int = 3) -> list[str]:
    """Compute what is missing of three files, stop after `upto` of them, and finish and publish when all are there."""
    computed = []
    for number in range(upto):
        name = f"part/{number}"
        if not work.has(name):
            write(work, name, bytes([number]) * (number + 1))
            computed.append(name)
    if upto == 3:
        if not work.finished:
            (work.side / "metrics.json").write_text("{}")
            work.finish({"shape": [3]})
        work.publish()
    return computed


def make_all() -> list[str]:
    with make_work() as work:
        return make(work)


def content_of(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


@pytest.fixture
def whole(folder: Path) -> dict[str, bytes]:
    """The bytes of an undisturbed run, which then leaves nothing behind."""
    make_all()
    content = content_of(OUT)
    shutil.rmtree("artifacts")
    return content


class TestReading:
    @pytest.fixture(autouse=True)
    def _published(self, folder: Path) -> None:  # noqa: ARG002
        make_all()

    def test_a_published_artifact_says_what_it_holds(self) -> None:
        artifact = Artifact(OUT)
        assert artifact.about == {"shape": [3]}
        assert artifact.names("part/") == ["part/0", "part/1", "part/2"]
        assert artifact.rows("part/2") == 3
        assert artifact.file("part/1").read_bytes() == b"\1\1"
        assert artifact.verified() == OUT

    def test_the_files_of_a_series_are_in_the_order_of_their_numbers(self) -> None:
        manifest = json.loads((OUT / "manifest.json").read_text())
        names = [f"shard-{number:05d}.parquet" for number in (2, 99_999, 100_000, 100_001)]
        manifest["files"] = {each: {"rows": 0, "bytes": 0, "sha256": ""} for each in sorted(names)}
        (OUT / "manifest.json").write_text(json.dumps(manifest))
        for each in names:
            (OUT / each).touch()
        assert Artifact(OUT).names("shard-") == names

    def test_the_manifest_holds_no_time_and_no_host(self) -> None:
        manifest = json.loads((OUT / "manifest.json").read_text())
        assert manifest.keys() == {"stage", "fingerprint", "inputs", "params", "about", "files"}
        assert os.uname().nodename not in json.dumps(manifest)

    def test_the_manifests_bytes_are_a_function_of_its_content(self) -> None:
        with make_work(params={"name": "größe", "k": 1}) as work:
            make(work)
        text = (OUT / "manifest.json").read_text()
        assert text == json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def test_a_missing_artifact_is_refused(self) -> None:
        with pytest.raises(UserError, match="artifacts/other: not there or incomplete"):
            Artifact(Path("artifacts/other"))

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\0\0\0", b"\xff", b'{"stage": "thing"}'])
    def test_a_damaged_manifest_is_refused(self, content: bytes) -> None:
        (OUT / "manifest.json").write_bytes(content)
        with pytest.raises(UserError, match=r"artifacts/thing/manifest\.json: damaged; remove artifacts/thing"):
            Artifact(OUT)

    @pytest.mark.parametrize("of", ["manifest", "file"])
    def test_a_manifest_that_says_more_than_is_read_is_refused(self, of: str) -> None:
        manifest = json.loads((OUT / "manifest.json").read_text())
        (manifest if of == "manifest" else manifest["files"]["part/1"])["licence"] = "none"
        (OUT / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=r"manifest\.json: damaged"):
            Artifact(OUT)

    @pytest.mark.parametrize("name", ["/etc/passwd", "../other/file", "part/../../../x"])
    def test_a_name_that_leads_out_of_the_artifact_is_refused(self, name: str) -> None:
        manifest = json.loads((OUT / "manifest.json").read_text())
        manifest["files"][name] = {"rows": None, "bytes": 1, "sha256": ""}
        (OUT / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="damaged"):
            Artifact(OUT)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda path: path.unlink(), "part/1: missing; "),
            (lambda path: path.write_bytes(b"\1"), "part/1: has 1 bytes, not 2; "),
            (lambda path: path.write_bytes(b"\1\2"), r"part/1: altered since it was written \(its digest differs\); "),
        ],
    )
    def test_a_missing_short_or_altered_file_is_refused(self, damage: Callable[[Path], None], message: str) -> None:
        damage(OUT / "part/1")
        with pytest.raises(UserError, match=f"{message}remove artifacts/thing and run the stage 'thing' again"):
            Artifact(OUT).verified()

    def test_a_file_that_vanishes_after_opening_is_refused(self) -> None:
        artifact = Artifact(OUT)
        (OUT / "part/1").unlink()
        with pytest.raises(UserError, match="part/1: missing"):
            artifact.file("part/1")

    def test_a_name_that_is_not_in_the_manifest_is_refused(self) -> None:
        (OUT / "stray").touch()
        with pytest.raises(UserError, match="stray: no such file in this artifact"):
            Artifact(OUT).file("stray")


def test_the_same_work_gives_the_same_bytes_in_any_folder_and_order(folder: Path, whole: dict[str, bytes]) -> None:
    with make_work(root=Path("elsewhere/.work"), out=Path("elsewhere/thing")) as work:
        for number in (2, 0, 1):
            write(work, f"part/{number}", bytes([number]) * (number + 1))
        make(work)
    assert content_of(Path("elsewhere/thing")) == whole


def test_what_an_earlier_process_finished_is_found_again(folder: Path, whole: dict[str, bytes]) -> None:
    with make_work() as work:
        make(work, upto=2)
    assert make_all() == ["part/2"]
    assert content_of(OUT) == whole


@pytest.mark.parametrize("change", [{"params": {"k": 2}}, {"inputs": {"in": "abd"}}, {"stage": "other"}])
def test_nothing_is_reused_after_a_change(folder: Path, change: dict[str, object]) -> None:
    with make_work() as work:
        make(work, upto=2)
    with make_work(**change) as work:
        assert make(work) == ["part/0", "part/1", "part/2"]


def test_nothing_is_reused_after_a_change_of_the_code_but_after_a_comment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = folder / "program.py"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(program), raising=False)
    program.write_text("x = 1")
    with make_work() as work:
        make(work, upto=2)
    program.write_text("x   =   1  # a comment\n")
    with make_work() as work:
        assert make(work, upto=2) == []
    program.write_text("x = 2")
    with make_work() as work:
        assert make(work, upto=2) == ["part/0", "part/1"]


@pytest.mark.parametrize("content", [b"", b"\1", b"\0\0", b"\1\1\1"])
def test_a_found_file_that_lost_its_content_is_computed_again(
    folder: Path, whole: dict[str, bytes], content: bytes
) -> None:
    with make_work() as work:
        make(work, upto=2)
    (work.files / "part/1").write_bytes(content)
    assert make_all() == ["part/1", "part/2"]
    assert content_of(OUT) == whole


@pytest.mark.parametrize(
    "tail", [b'\n{"files": {"part/2": {"ro', b"\0" * 50, b"\xff\xfe\n", b"\n\n", b'\n{"files": 3}\n']
)
def test_a_torn_line_of_the_journal_is_passed_over(folder: Path, whole: dict[str, bytes], tail: bytes) -> None:
    with make_work() as work:
        make(work, upto=2)
        with (work.path / "journal.jsonl").open("ab") as journal:
            journal.write(tail)
    assert make_all() == ["part/2"]
    assert make_all() == []
    assert content_of(OUT) == whole


def test_a_line_that_is_lost_from_the_journal_costs_its_file_and_nothing_else(
    folder: Path, whole: dict[str, bytes]
) -> None:
    with make_work() as work:
        make(work, upto=2)
        journal = work.path / "journal.jsonl"
        journal.write_bytes(b"\n".join(line for line in journal.read_bytes().splitlines() if b"part/0" not in line))
    assert make_all() == ["part/0", "part/2"]
    assert content_of(OUT) == whole


def test_nothing_is_published_without_a_file_that_was_planned(folder: Path) -> None:
    with make_work() as work:
        work.expect(f"part/{number}" for number in range(5))
        make(work, upto=2)
        with pytest.raises(UserError, match=r"^thing: 3 of its files are missing, the first is part/2; run it again: "):
            work.finish({})
        assert not work.finished
        assert not OUT.exists()


def test_nothing_is_published_without_a_file_that_has_vanished_since(folder: Path, whole: dict[str, bytes]) -> None:
    with make_work() as work:
        make(work, upto=2)
        (work.files / "part/1").unlink()
        with pytest.raises(UserError, match=r"^thing: 1 of its files are missing, the first is part/1; run it again: "):
            work.finish({})
    assert make_all() == ["part/1", "part/2"]
    assert content_of(OUT) == whole


def test_the_digest_is_known_before_the_artifact_is_finished(folder: Path) -> None:
    with make_work() as work:
        make(work, upto=2)
        digest = work.digest({"shape": [2]})
        (work.side / "metrics.json").write_text("{}")
        work.finish({"shape": [2]})
        work.publish()
    assert Artifact(OUT).digest == digest


@pytest.mark.parametrize("which", ["another key", "the same"])
def test_processes_that_read_different_inputs_do_not_work_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    work = make_work()
    first = work.path.name if which == "the same" else "0123456789abcdef"
    monkeypatch.setattr(distributed, "from_first", lambda _: (first, False, {}))
    if which == "the same":
        work.__enter__()
    else:
        with pytest.raises(UserError, match=r"^thing: the processes read different inputs, parameters or code; run "):
            work.__enter__()


def test_killed_between_finish_and_publish_nothing_is_computed_again(folder: Path, whole: dict[str, bytes]) -> None:
    with make_work() as work:
        make(work, upto=2)
        write(work, "part/2", b"\2\2\2")
        (work.side / "metrics.json").write_text("{}")
        work.finish({"shape": [3]})
    assert not OUT.exists()
    assert make_all() == []
    assert content_of(OUT) == whole


def test_killed_between_publish_and_dvc_lock_all_places_are_filled_again(folder: Path, whole: dict[str, bytes]) -> None:
    make_all()
    shutil.rmtree(OUT)  # as DVC does before it runs a stage
    SIDE["metrics.json"].unlink()
    assert make_all() == []
    assert content_of(OUT) == whole
    assert SIDE["metrics.json"].read_text() == "{}"


@pytest.mark.parametrize("lost", ["manifest.json", "files/part/1", "side/metrics.json"])
def test_finished_work_that_lost_something_is_mended(folder: Path, whole: dict[str, bytes], lost: str) -> None:
    make_all()
    shutil.rmtree(OUT)
    with make_work() as work:
        pass
    if lost == "manifest.json":
        (work.path / lost).write_bytes(b"")
    else:
        (work.path / lost).unlink()
    assert make_all() == (["part/1"] if "part" in lost else [])
    assert content_of(OUT) == whole


def test_work_that_lost_something_is_finished_only_once_it_is_mended(folder: Path) -> None:
    make_all()
    with make_work() as work:
        side = work.side / "metrics.json"
    side.unlink()
    with make_work() as work:
        assert not work.finished
        side.write_text("{")  # and is killed
    with make_work() as work:
        assert not work.finished


def test_publishing_replaces_the_old_artifact_and_forgets_other_work(folder: Path) -> None:
    make_all()
    with make_work(params={"k": 2}) as work:
        make(work, upto=1)
    with make_work(params={"k": 3}) as work:
        (work.scratch / "checkpoint").touch()
        make(work)
        assert {each.name for each in work.path.parent.iterdir()} == {"lock", work.path.name}
        assert not work.scratch.exists()
    assert Artifact(OUT).manifest.params == {"k": 3}


def test_what_a_killed_publishing_left_is_in_no_ones_way(folder: Path, whole: dict[str, bytes]) -> None:
    make_all()
    for name in ("publishing", "replaced"):
        left = OUT.parent / ".work/thing" / name
        left.mkdir()
        (left / "manifest.json").touch()
    assert make_all() == []
    assert content_of(OUT) == whole


def test_publishing_costs_no_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COPIED_BYTES", 1)
    make_all()
    with make_work() as work:
        assert (OUT / "part/1").samefile(work.files / "part/1")


def test_what_is_written_into_a_small_artifact_leaves_the_work_whole(folder: Path) -> None:
    make_all()
    whole = (OUT / "part/1").read_bytes()
    with (OUT / "part/1").open("r+b") as file:
        file.write(b"?")
    with pytest.raises(UserError, match="altered"):
        Artifact(OUT).verified()
    with make_work() as work:
        assert work.finished
        work.publish()
    assert Artifact(OUT).file("part/1").read_bytes() == whole


def test_finished_work_that_was_damaged_is_not_published(folder: Path) -> None:
    make_all()
    with make_work() as work:
        path = work.files / "part/1"
    with path.open("r+b") as file:
        file.write(b"?")
    with make_work() as work:
        assert not work.finished
        assert not work.has("part/1")


def test_an_artifact_that_is_made_anew_while_it_is_read_is_refused_as_that(folder: Path) -> None:
    make_all()
    reader = Artifact(OUT)
    with make_work(params={"k": 9}) as work:
        write(work, "part/0", b"?")
        make(work)
    with pytest.raises(UserError, match=r"was made anew while it was read; run this again$"):
        reader.verified()


def test_a_folder_is_entered_whole_or_not_at_all(folder: Path) -> None:
    with make_work() as work:
        with suppress(ZeroDivisionError), work.write_folder() as target:
            (target / "config.json").write_text("{}")
            raise ZeroDivisionError
        assert work.records() == {}
        with work.write_folder() as target:
            (target / "deep").mkdir()
            (target / "deep/weights").write_text("w")
            (target / "config.json").write_text("{}")
        assert work.has("config.json")
        assert work.has("deep/weights")
        journal = (work.path / "journal.jsonl").read_text().split("\n")
        assert len([line for line in journal if line]) == 1


def test_files_may_be_written_side_by_side(folder: Path) -> None:
    with make_work() as work:
        with work.write("a") as a, work.write("b") as b, work.write_folder() as target:
            for path in (a.path, b.path, target / "c"):
                path.write_text("x")
        assert work.records().keys() == {"a", "b", "c"}


def test_a_file_is_not_there_before_it_is_whole(folder: Path) -> None:
    with make_work() as work:
        with suppress(ZeroDivisionError), work.write("a") as pending:
            pending.path.write_text("half")
            raise ZeroDivisionError
        assert not work.has("a")
        assert not (work.files / "a").exists()


def test_a_second_writer_is_refused_in_one_line_until_the_first_is_done(folder: Path) -> None:
    with make_work():
        with pytest.raises(
            UserError, match=rf"^thing: process {os.getpid()} is already at work on this stage; [^\n]*$"
        ):
            make_all()
        with make_work(stage="other"):
            pass
    make_all()


def test_who_waits_for_a_process_that_is_stopping_says_so_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, waits, other = list[str](), 0, make_work().__enter__()
    assert other._lock
    other._lock.mark_stopping()

    def wait(_seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            other.__exit__(None, None, None)

    monkeypatch.setattr(module.time, "sleep", wait)
    monkeypatch.setattr(module, "say", said.append)
    with make_work():
        assert said == [f"thing: waiting for process {os.getpid()}, which was stopped and saves its work"]


def test_records_are_of_the_written_bytes(folder: Path) -> None:
    with make_work() as work:
        write(work, "a", b"abc")
        digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert work.records() == {"a": FileRecord(rows=3, bytes=3, sha256=digest)}


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3),  # files before the process ends; 3: it publishes
        st.sampled_from(["none", "tear journal", "cut file", "zero file", "drop manifest", "drop out", "litter"]),
    ),
    max_size=6,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """As `whole`."""
    with chdir(tmp_path_factory.mktemp("whole")):
        make_all()
        return content_of(OUT)


@settings(max_examples=60)
@given(events=EVENTS)
def test_any_sequence_of_crashes_and_losses_ends_in_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, undisturbed: dict[str, bytes], events: list[tuple[int, str]]
) -> None:
    with chdir(tmp_path_factory.mktemp("crashes")):
        for upto, loss in events:
            with make_work() as work:
                make(work, upto)
            lose(work, loss)
        make_all()
        assert content_of(OUT) == undisturbed


def lose(work: Work, loss: str) -> None:
    """What a kill or a loss of power may leave, in the newest file."""
    files = sorted(each for each in work.files.rglob("*") if each.is_file())
    match loss:
        case "tear journal" if (journal := work.path / "journal.jsonl").exists():
            journal.write_bytes(journal.read_bytes()[:-7])
        case "cut file" if files:
            replace(files[-1], files[-1].read_bytes()[:-1])
        case "zero file" if files:
            replace(files[-1], bytes(files[-1].stat().st_size))
        case "drop manifest":
            (work.path / "manifest.json").unlink(missing_ok=True)
        case "drop out":
            shutil.rmtree(OUT, ignore_errors=True)
        case "litter":
            (work.path / "writing").mkdir(exist_ok=True)
            (work.path / "writing/half").write_text("half")
            (work.path.parent / "publishing").mkdir(exist_ok=True)
            (work.path.parent / "publishing/part").write_text("half")


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("copied", [0, 1 << 26])
def test_a_published_file_has_the_mode_of_any_new_one_whatever_library_wrote_it(
    copied: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COPIED_BYTES", copied)
    before = os.umask(0o026)
    try:
        with Work("toy", Path("artifacts/toy"), {}, {}) as work:
            with work.write_folder() as target:
                save_file({"x": torch.zeros(2)}, target / "x.safetensors")  # 0600 by itself
            with work.write("y") as pending:
                pending.path.write_bytes(b"y")
                pending.path.chmod(0o600)
            work.finish({})
            work.publish()
    finally:
        os.umask(before)
    assert {each.name: stat.S_IMODE(each.stat().st_mode) for each in Path("artifacts/toy").iterdir()} == {
        "manifest.json": 0o640,
        "x.safetensors": 0o640,
        "y": 0o640,
    }


def test_a_link_stays_and_the_file_that_it_names_is_replaced(folder: Path) -> None:
    Path("deep").mkdir()
    Path("deep/target").write_text("old")
    Path("link").symlink_to("deep/target")
    write_atomically(Path("link"), b"new")
    assert Path("link").is_symlink()
    assert Path("deep/target").read_text() == "new"
    assert sorted(Path().rglob("*")) == [Path("deep"), Path("deep/target"), Path("link")]
