import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cocomix.corpus import installed, parts
from cocomix.corpus.build import build, fingerprint
from cocomix.corpus.installed import DocumentationFile
from cocomix.corpus.splits import SPLITS
from cocomix.corpus.store import ROW_GROUP_BYTES
from cocomix.params import CorpusParams, FilesParams, InstalledDocsParams
from cocomix.plumbing import distributed
from cocomix.plumbing.errors import UserError


def params_of(paths: list[str], megabytes: float | None = None, share: float = 0.2) -> CorpusParams:
    return CorpusParams(
        source="files",
        files=FilesParams(paths=paths),
        megabytes=megabytes,
        validation_share=share,
        test_share=share,
    )


def write_jsonl(path: str, texts: list[str]) -> None:
    Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def parts_in(folder: Path) -> list[Path]:
    """The parts of files, in order."""
    return sorted(folder.glob("parts-*/*"))


def rows_of(folder: Path) -> list[dict[str, str]]:
    return [row for split in SPLITS for row in pq.read_table(folder / f"{split}.parquet").to_pylist()]


@pytest.fixture
def out(folder: Path) -> Path:
    (folder / "out").mkdir()
    return folder / "out"


TEXTS = [f"This is text number {number}, and it is unlike the others." for number in range(300)]


def test_every_document_is_in_one_split_with_its_place(out: Path) -> None:
    write_jsonl("a.jsonl", TEXTS)
    summary = build(params_of(["*.jsonl"]), out)
    rows = rows_of(out)
    assert sorted(row["text"] for row in rows) == sorted(TEXTS)
    assert all(row["group"] == row["source"] for row in rows)
    assert all(TEXTS[int(row["source"].removeprefix("a.jsonl:")) - 1] == row["text"] for row in rows)
    for split in SPLITS:
        found = [row["text"] for row in pq.read_table(out / f"{split}.parquet").to_pylist()]
        assert summary.splits[split] == (len(found), sum(len(text.encode()) for text in found))
    assert 30 < summary.splits["validation"].documents < 90
    assert 30 < summary.splits["test"].documents < 90


def test_repeated_and_empty_documents_are_dropped_and_counted(out: Path) -> None:
    write_jsonl("a.jsonl", TEXTS)
    write_jsonl("b.jsonl", [*TEXTS[:10], " ", f"  {TEXTS[20]}\n", ""])
    summary = build(params_of(["*.jsonl"]), out)
    assert sorted(row["text"] for row in rows_of(out)) == sorted(TEXTS)
    assert summary.dropped == {"repeated documents": 11, "empty documents": 2}
    assert summary.sources == 2


def test_the_split_of_a_document_follows_from_its_text_alone(out: Path) -> None:
    write_jsonl("a.jsonl", TEXTS)
    build(params_of(["a.jsonl"]), out)
    before = {row["text"] for row in pq.read_table(out / "validation.parquet").to_pylist()}
    write_jsonl("a.jsonl", ["Something new.", *reversed(TEXTS)])
    (other := out / "other").mkdir()
    build(params_of(["a.jsonl"]), other)
    after = {row["text"] for row in pq.read_table(other / "validation.parquet").to_pylist()}
    assert after - {"Something new."} == before


def test_the_same_texts_give_the_same_bytes_in_row_groups_of_even_size(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    size_of_groups = ROW_GROUP_BYTES // 10
    monkeypatch.setattr("cocomix.corpus.store.ROW_GROUP_BYTES", size_of_groups)
    write_jsonl("a.jsonl", [text * 100 for text in TEXTS])
    contents = []
    for _ in range(2):
        build(params_of(["a.jsonl"]), out)
        contents.append([(out / f"{split}.parquet").read_bytes() for split in SPLITS])
    assert contents[0] == contents[1]
    metadata = pq.ParquetFile(out / "train.parquet").metadata
    sizes = [metadata.row_group(number).column(3).total_uncompressed_size for number in range(metadata.num_row_groups)]
    assert len(sizes) > 3
    assert all(size_of_groups <= size < 1.1 * size_of_groups for size in sizes[:-1])


def test_megabytes_caps_the_text(out: Path) -> None:
    write_jsonl("a.jsonl", TEXTS)
    assert build(params_of(["a.jsonl"], megabytes=0.01), out).limited
    kept = [row["text"] for row in rows_of(out)]
    size = sum(len(text) for text in kept)
    assert 10_000 - 60 < size <= 10_000
    assert sorted(kept) == sorted(TEXTS[: len(kept)])


def test_files_are_read_whole_unless_megabytes_is_given(out: Path) -> None:
    write_jsonl("a.jsonl", ["x" * 8_000_000, *TEXTS])
    params = CorpusParams(
        source="files",
        files=FilesParams(paths=["a.jsonl"]),
        installed_docs=InstalledDocsParams(megabytes=7.6),
        validation_share=0.2,
        test_share=0.2,
    )
    found = build(params, out)
    assert sum(size.documents for size in found.splits.values()) == len(TEXTS) + 1
    assert not found.limited
    assert params.limit == ("corpus.megabytes", math.inf)
    of_packages = params.model_copy(update={"source": "installed-docs"})
    assert of_packages.limit == ("corpus.installed_docs.megabytes", 7.6e6)
    assert of_packages.model_copy(update={"megabytes": 1.0}).limit == ("corpus.megabytes", 1e6)


@pytest.mark.parametrize(
    ("texts", "share", "message"),
    [
        ([], 0.2, "corpus: nothing is left of files; dropped: nothing"),
        (["", " "], 0.2, "corpus: nothing is left of files; dropped: {'empty documents': 2}"),
        (TEXTS[:3], 0.001, "corpus: no document for the validation split (3 in all): give more text, or raise "),
        (['half a pair: "\ud800"'], 0.2, "a.jsonl:1: half a surrogate pair at character 15: not Unicode"),
    ],
)
def test_too_little_or_broken_text_is_an_error(out: Path, texts: list[str], share: float, message: str) -> None:
    write_jsonl("a.jsonl", texts)
    with pytest.raises(UserError) as caught:
        build(params_of(["a.jsonl"], share=share), out)
    assert str(caught.value).startswith(message)


def test_a_first_document_above_megabytes_is_named(out: Path) -> None:
    write_jsonl("a.jsonl", ["x" * 5000, *TEXTS])
    with pytest.raises(UserError, match=r"corpus\.megabytes: the first document, a\.jsonl:1, alone has 0\.005: allow"):
        build(params_of(["a.jsonl"], megabytes=0.004), out)
    with pytest.raises(UserError, match=r"\(1 in all\): raise corpus\.megabytes \(0\.005\)"):
        build(params_of(["a.jsonl"], megabytes=0.005), out)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    monkeypatch.setattr(parts, "PART_BYTES", 2000)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.parquet", "a.txt"])
def test_parts_that_are_there_are_not_read_again_and_the_bytes_are_the_same(
    out: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    repeated = [*TEXTS[:200], *TEXTS[100:], " "]
    write_jsonl("a.jsonl", repeated)
    Path("a.jsonl.zst").write_bytes(zstandard.compress(Path("a.jsonl").read_bytes()))
    pq.write_table(pa.table({"text": repeated}), "a.parquet")
    Path("a.txt").write_text("\n\n".join(repeated))
    monkeypatch.setattr("cocomix.corpus.files.PIECE_CHARACTERS", 300)
    whole = build(params_of([name]), out)
    contents = [(out / f"{split}.parquet").read_bytes() for split in SPLITS]
    for left in (0, 1, 4):
        for path in parts_in(out)[left:]:
            path.unlink()
        kept = {path: path.stat().st_mtime_ns for path in parts_in(out)}
        assert build(params_of([name]), out) == whole
        assert [(out / f"{split}.parquet").read_bytes() for split in SPLITS] == contents
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(parts_in(out)) > 5


def test_parts_of_a_file_that_was_written_since_are_read_again(out: Path, small_parts: None) -> None:
    write_jsonl("a.jsonl", TEXTS[:200])
    build(params_of(["a.jsonl"]), out)
    rows = rows_of(out)
    write_jsonl("a.jsonl", TEXTS[100:])  # as while the file is read
    build(params_of(["a.jsonl"]), out)
    write_jsonl("a.jsonl", TEXTS[:200])
    build(params_of(["a.jsonl"]), out)
    assert rows_of(out) == rows


@pytest.mark.parametrize("processes", [2, 3])
def test_parts_shared_by_processes_make_the_same_bytes(
    out: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    write_jsonl("a.jsonl", [*TEXTS, *TEXTS[:50]])
    whole = build(params_of(["a.jsonl"]), out)
    (shared := Path("shared")).mkdir()
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "from_first", lambda found: found)
    made = 0
    for rank in reversed(range(processes)):  # the first process collects what the others have made
        monkeypatch.setenv("RANK", str(rank))
        assert build(params_of(["a.jsonl"]), shared) == (None if rank else whole)
        assert len(parts_in(shared)) > made
        made = len(parts_in(shared))
    for split in SPLITS:
        assert (shared / f"{split}.parquet").read_bytes() == (out / f"{split}.parquet").read_bytes()


def test_an_error_in_one_of_several_processes_is_named_there_and_the_others_keep_their_parts(
    out: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl("a.jsonl", TEXTS)
    Path("a.jsonl").write_text("{\n" + Path("a.jsonl").read_text())  # in the first part, which the first process reads
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "from_first", lambda found: found)
    monkeypatch.setenv("RANK", "1")
    assert build(params_of(["a.jsonl"]), out) is None
    kept = {path.name for path in parts_in(out) if path.suffix == ".arrow"}
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"a\.jsonl:1: not valid JSON"):
        build(params_of(["a.jsonl"]), out)
    assert "000001.arrow" in kept <= {path.name for path in parts_in(out)}
    assert "000000.arrow" not in {path.name for path in parts_in(out)}


def test_of_a_source_that_may_not_be_needed_whole_the_first_process_reads_all(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl("a.jsonl", TEXTS)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert build(params_of(["a.jsonl"], megabytes=0.01), out) is None
    assert not list(out.iterdir())
    monkeypatch.setenv("RANK", "0")
    summary = build(params_of(["a.jsonl"], megabytes=0.01), out)
    assert summary
    assert summary.limited


def test_what_is_wrong_beyond_the_text_that_is_kept_is_not_told(out: Path, small_parts: None) -> None:
    write_jsonl("a.jsonl", TEXTS)
    Path("b.jsonl").write_text("{")
    Path("c.jsonl.gz").write_text("no archive")
    assert build(params_of(["*.jsonl*"], megabytes=0.01), out).splits["train"].documents > 80
    with pytest.raises(UserError, match=r"b\.jsonl:1: not valid JSON"):
        build(params_of(["*.jsonl*"]), out)
    Path("b.jsonl").unlink()
    with pytest.raises(UserError, match=r"c\.jsonl\.gz: damaged"):
        build(params_of(["*.jsonl*"]), out)


def test_the_fingerprint_of_files_follows_their_state(folder: Path) -> None:
    write_jsonl("a.jsonl", TEXTS)
    before = fingerprint(params_of(["*.jsonl"]))
    write_jsonl("b.jsonl", TEXTS)
    assert fingerprint(params_of(["*.jsonl"])) != before


def test_packages_are_kept_whole(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origins = []
    for number in range(120):
        path = Path(f"m{number}.py")
        words = f"{'abcdefghij'[number // 12]}{'klmnopqrstuv'[number % 12]}"
        path.write_text(
            f'"""The text about {words} is as long as it has to be for a document of the {words} kind.\n\n'
            f'It goes on about {words} in a second paragraph, and then it ends."""'
        )
        origins.append(DocumentationFile(f"package{number // 4}", path.name, path))
    monkeypatch.setattr(installed, "find_documentation", lambda: origins)
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    build(CorpusParams(source="installed-docs", validation_share=0.2, test_share=0.2), out)
    rows = rows_of(out)
    assert len(rows) == 120
    package = {origin.source: origin.group for origin in origins}
    assert all(row["group"] == package[row["source"]] for row in rows)
    packages = [set(pq.read_table(out / f"{split}.parquet")["group"].to_pylist()) for split in SPLITS]
    assert all(packages)
    assert sum(map(len, packages)) == 30
    for split in SPLITS:
        digests = pq.read_table(out / f"{split}.parquet").column("id").to_pylist()
        assert digests == sorted(digests)
