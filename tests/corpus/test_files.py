import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocomix.corpus import files
from cocomix.corpus.files import PIECE_CHARACTERS, files_digest, find_files, read_files
from cocomix.errors import UserError
from cocomix.params import FilesParams

TEXTS = ["The first text.", "Der zweite Text, länger.", "第三\nwith two lines"]


def compress(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return zstandard.compress(content) if name.endswith(".zst") else content


def jsonl(texts: list[str], field: str = "text") -> bytes:
    return b"".join(json.dumps({"id": 1, field: text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def parquet(texts: list[str], field: str = "text") -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [1] * len(texts), field: texts}), sink)
    return sink.getvalue().to_pybytes()


def texts_of(*paths: str, field: str = "text") -> list[str]:
    return [document.text for document in read_files(FilesParams(paths=list(paths), text_field=field))]


def error_of(*paths: str, field: str = "text") -> str:
    with pytest.raises(UserError) as caught:
        texts_of(*paths, field=field)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".txt", ".md"])
def test_every_kind_of_file_gives_its_texts(folder: Path, kind: str, compression: str) -> None:
    if kind in (".jsonl", ".parquet"):
        content = {".jsonl": jsonl, ".parquet": parquet}[kind](TEXTS, field="body")
        Path(f"data{kind}{compression}").write_bytes(compress(compression, content))
    else:
        for number, text in enumerate(TEXTS):
            Path(f"data{number}{kind}{compression}").write_bytes(compress(compression, text.encode()))
    assert texts_of("data*", field="body") == TEXTS


def test_concatenated_archives_are_read_to_the_end(folder: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        Path(name).write_bytes(compress(name, jsonl(TEXTS[:1])) + compress(name, jsonl(TEXTS[1:])))
    assert texts_of("*.jsonl.*") == TEXTS + TEXTS


def test_byte_order_marks_and_windows_line_ends_are_no_text(folder: Path) -> None:
    Path("a.txt").write_bytes("\ufeffone\r\ntwo\rthree".encode())
    Path("b.jsonl").write_bytes("\ufeff".encode() + jsonl(["four"]).replace(b"\n", b"\r\n") + b"\r\n")
    assert texts_of("a.txt", "b.jsonl") == ["one\ntwo\nthree", "four"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["word ", "longer words\n", "é\n\n", "x" * 90, "\r\n"]), max_size=300))
def test_a_long_text_is_cut_into_pieces_that_join_to_it(folder: Path, parts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PIECE_CHARACTERS", 200)
        patch.setattr(files, "_CHUNK", 64)
        text = "".join(parts)
        Path("a.txt").write_bytes(text.encode())
        found = list(read_files(FilesParams(paths=["a.txt"])))
    clean = text.replace("\r\n", "\n")
    assert "".join(document.text for document in found) == clean
    position = 0
    for document in found:
        assert document.group == "a.txt"
        assert len(document.text) <= 200
        assert document.source == f"a.txt:{clean[:position].count(chr(10)) + 1}"
        position += len(document.text)


def test_pieces_end_at_blank_lines(folder: Path) -> None:
    paragraph = "words " * 1000
    Path("a.txt").write_text("\n\n".join([paragraph] * 40))
    found = texts_of("a.txt")
    assert len(found) > 1
    assert all(text.strip().startswith("words") and text.endswith(paragraph) for text in found)
    assert all(len(text) > PIECE_CHARACTERS / 2 for text in found[:-1])


def test_files_come_in_the_order_of_their_names_and_once(folder: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    assert [str(path) for path in find_files(["**/*.txt", "*.txt"])] == ["a.txt", "b.txt", "sub/c.txt"]


def test_the_digest_changes_with_names_and_content(folder: Path) -> None:
    path = Path("a.txt")
    path.write_text("one")
    digests = [files_digest(["*.txt"])]
    os.utime(path, ns=(0, 0))
    assert files_digest(["*.txt"]) == digests[0]
    path.write_text("two")
    digests.append(files_digest(["*.txt"]))
    path.rename("b.txt")
    digests.append(files_digest(["*.txt"]))
    assert len(set(digests)) == 3


def test_a_glob_that_matches_nothing_is_named(folder: Path) -> None:
    Path("a.txt").touch()
    assert "'data/*.jsonl' matches no file" in error_of("a.txt", "data/*.jsonl")


def test_an_unknown_kind_of_file_is_named(folder: Path) -> None:
    Path("a.csv.gz").touch()
    assert error_of("*").startswith("a.csv.gz: not a known kind of file; allowed: .txt")


def test_a_missing_field_is_named_with_its_place_and_what_there_is(folder: Path) -> None:
    Path("a.jsonl").write_bytes(jsonl(["x"], "text") + jsonl(["y"], "body"))
    assert error_of("a.jsonl") == "a.jsonl:2: no field 'text' (corpus.files.text_field); allowed: body, id"
    Path("a.parquet").write_bytes(parquet(["x"], "texts"))
    assert error_of("a.parquet") == "a.parquet: no column 'text' (corpus.files.text_field); did you mean 'texts'?"


def test_a_field_that_holds_no_text_is_named(folder: Path) -> None:
    Path("a.jsonl").write_text('{"text": "x"}\n{"text": [1]}\n')
    assert error_of("a.jsonl") == "a.jsonl:2: the field 'text' holds list, not text"
    Path("b.jsonl").write_text('"x"\n')
    assert error_of("b.jsonl") == "b.jsonl:1: holds str, not an object with the field 'text'"
    pq.write_table(pa.table({"text": [1]}), "a.parquet")
    assert error_of("a.parquet") == "a.parquet:1: the field 'text' holds int, not text"


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_text_that_is_not_utf8_is_named_by_file_and_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    monkeypatch.setattr(files, "_CHUNK", 7)
    Path(f"a.txt{compression}").write_bytes(compress(compression, "läng\nlänger\nam ".encode() + b"l\xe4ngsten\n"))
    assert error_of("a.txt*").startswith(f"a.txt{compression}:3: not UTF-8")
    Path(f"b.txt{compression}").write_bytes(compress(compression, "one\ntwö".encode()[:-1]))
    assert error_of("b.txt*").startswith(f"b.txt{compression}:2: not UTF-8")
    Path(f"a.jsonl{compression}").write_bytes(compress(compression, jsonl(["x"]) + b'{"text": "\xff"}\n'))
    assert error_of("a.jsonl*").startswith(f"a.jsonl{compression}:2: not UTF-8")
    column = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"text": column}), "a.parquet")
    assert error_of("a.parquet").startswith("a.parquet:1: not UTF-8")


def test_a_broken_line_of_json_is_named(folder: Path) -> None:
    Path("a.jsonl").write_bytes(jsonl(["x"]) + b'\n{"text": "y"\n')
    assert error_of("a.jsonl").startswith("a.jsonl:3: not valid JSON")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.parquet.gz", "a.txt.zst"])
@pytest.mark.parametrize("damage", ["cut", "replaced"])
def test_damaged_files_are_named(folder: Path, name: str, damage: str) -> None:
    texts = [f"text {number} {number**7}" for number in range(2000)]
    whole = compress(name, parquet(texts) if "parquet" in name else jsonl(texts))
    Path(name).write_bytes(whole[:-20] if damage == "cut" else b"not what it says" * 9)
    assert error_of(name).startswith(f"{name}: damaged or unreadable")
