import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocomix.corpus import files, unpack
from cocomix.corpus.files import PIECE_CHARACTERS, files_digest, find_files, read_files
from cocomix.corpus.pages import largest_pages
from cocomix.params import FilesParams
from cocomix.plumbing.errors import UserError

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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
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
    assert error_of("a.parquet") == "a.parquet: the column 'text' holds INT64, not text"


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


SHARED = Path(__file__).parents[3] / "shared/data"
SKIPPABLE = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"


def test_archives_may_hold_what_their_own_tools_write(folder: Path) -> None:
    packed = {name: compress(name, jsonl(TEXTS)) for name in ("a.jsonl.gz", "a.jsonl.zst")}
    Path("padded.jsonl.gz").write_bytes(packed["a.jsonl.gz"] + bytes(100))
    Path("skippable.jsonl.zst").write_bytes(SKIPPABLE + packed["a.jsonl.zst"] + SKIPPABLE)
    assert texts_of("*.jsonl.*") == TEXTS + TEXTS


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_what_follows_an_archive_and_is_none_is_named(folder: Path, name: str) -> None:
    for rest in (b"garbage", compress(name, jsonl(TEXTS))[:-3]):
        Path(name).write_bytes(compress(name, jsonl(TEXTS)) + rest)
        assert error_of(name).startswith(f"{name}: damaged or unreadable")


def test_a_zst_with_a_long_window_is_read(folder: Path) -> None:
    far = zstandard.ZstdCompressionParameters(
        window_log=28, hash_log=10, chain_log=10, strategy=zstandard.STRATEGY_FAST
    )
    packer = zstandard.ZstdCompressor(compression_params=far).compressobj()
    Path("a.jsonl.zst").write_bytes(packer.compress(jsonl(TEXTS)) + packer.flush())
    assert zstandard.get_frame_parameters(Path("a.jsonl.zst").read_bytes()).window_size > 1 << 27
    assert texts_of("a.jsonl.zst") == TEXTS


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data is not there")
def test_a_zst_made_with_the_longest_window_is_read() -> None:
    texts = texts_of(str(SHARED / "oddities/long-window-31.jsonl.zst"))
    assert texts[0].startswith("document 0 ")
    assert len(texts) > 10


def test_names_that_are_not_utf8_are_read_and_told_by_an_escape(folder: Path) -> None:
    for name in (b"a\xff.jsonl", b"b\xff.txt", b"c\xff.parquet", b"d\xff.jsonl.zst"):
        with open(name, "wb") as file:
            file.write(compress(os.fsdecode(name), parquet(["x"]) if b"parquet" in name else jsonl(["x"])))
    found = list(read_files(FilesParams(paths=["*"])))
    assert [each.source for each in found] == [
        "a\\xff.jsonl:1",
        "b\\xff.txt:1",
        "c\\xff.parquet:1",
        "d\\xff.jsonl.zst:1",
    ]
    assert files_digest(["*"]) != files_digest(["a*"])
    with open(b"e\xff.jsonl", "wb") as file:
        file.write(b"{")
    assert error_of("e*").startswith("e\\xff.jsonl:1: not valid JSON")


def test_a_field_in_a_field_is_read(folder: Path) -> None:
    rows = [{"meta": {"text": text, "more": {"text": "deep"}}, "a.b": text} for text in TEXTS]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"meta": None, "a.b": ""}]))
    pq.write_table(pa.Table.from_pylist([*rows, {"meta": None, "a.b": ""}]), "b.parquet")
    for field, expected in {"meta.text": TEXTS, "meta.more.text": ["deep"] * 3, "a.b": TEXTS}.items():
        assert texts_of("a.jsonl", "b.parquet", field=field) == [*expected, ""] * 2
    for name, place in {"a.jsonl": "a.jsonl:1: no field", "b.parquet": "b.parquet: no column"}.items():
        assert error_of(name, field="txt.meta").startswith(place)
        assert error_of(name, field="meta.txt") == (
            f"{place} 'meta.txt' (corpus.files.text_field); did you mean 'meta.text'?"
        )
    assert error_of("b.parquet", field="meta").startswith("b.parquet: the column 'meta' holds struct<")


def test_fields_are_listed_as_far_as_a_line_holds_them(folder: Path) -> None:
    Path("a.jsonl").write_text(json.dumps({f"field{number:03d}": {"x" * 200: 1} for number in range(999)} | {"b": 1}))
    assert error_of("a.jsonl") == "a.jsonl:1: no field 'text' (corpus.files.text_field); allowed: b"
    Path("a.jsonl").write_text(json.dumps({f"{number:03d}": 1 for number in range(999)}))
    assert error_of("a.jsonl").endswith("018, 019, ...")


COLUMNS = {
    "large": pa.array(TEXTS, pa.large_string()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "binary": pa.array([text.encode() for text in TEXTS]),
    "with nothing": pa.array([*TEXTS, None]),
    "list": pa.array([[text] for text in TEXTS]),
    "a time that Python has not": pa.array([2**62], pa.timestamp("us")),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_kind_of_column_that_holds_text_is_read(folder: Path, kind: str) -> None:
    pq.write_table(pa.table({"text": COLUMNS[kind]}), "a.parquet")
    pq.write_table(pa.table({"text": COLUMNS[kind]})[:0], "b.parquet")
    refused = {"list": "list<", "a time that Python has not": "INT64"}
    if kind in refused:
        assert error_of("a.parquet").startswith(f"a.parquet: the column 'text' holds {refused[kind]}")
    else:
        assert [text for text in texts_of("a.parquet", "b.parquet") if text] == TEXTS


def test_links_that_lead_in_circles_are_followed_once(folder: Path) -> None:
    for name in ("data/one/a.txt", "data/two/b.txt", "elsewhere/c.txt", "data/.hidden/d.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    for name in ("data/one/up", "data/one/top", "data/two/up", "data/two/top", "data/up"):
        Path(name).symlink_to(folder / "data")
    Path("data/out").symlink_to(folder / "elsewhere")
    found = ["data/one/a.txt", "data/out/c.txt", "data/two/b.txt"]
    assert [str(path) for path in find_files(["data/**/*.txt"])] == found
    assert [str(path) for path in find_files(["**/*.txt"])] == [*found[:1], "data/two/b.txt", "elsewhere/c.txt"]
    assert [str(path) for path in find_files(["data/**"])] == found
    assert [str(path) for path in find_files(["*/**/b.txt", f"{folder}/data/one/**/a.txt"])] == [
        str(folder / "data/one/a.txt"),
        "data/two/b.txt",
    ]


def test_links_that_lead_nowhere_or_through_a_locked_folder_are_passed_over(folder: Path) -> None:
    Path("data/locked/inside").mkdir(parents=True)
    Path("data/a.txt").write_text("x")
    Path("data/loop").symlink_to("loop")
    Path("data/loop.txt").symlink_to("loop.txt")
    Path("data/gone").symlink_to("nowhere")
    Path("data/through").symlink_to("locked/inside")
    Path("data/through.txt").symlink_to("locked/inside/b.txt")
    Path("data/locked").chmod(0)  # root may enter it
    try:
        assert [str(path) for path in find_files(["data/**/*.txt"])] == ["data/a.txt"]
    finally:
        Path("data/locked").chmod(0o755)


def test_what_is_no_regular_file_is_not_opened(folder: Path) -> None:
    os.mkfifo("pipe.txt")
    Path("zero.txt").symlink_to("/dev/zero")
    Path("gone.txt").symlink_to("nowhere")
    Path("folder.txt").mkdir()
    assert error_of("*.txt").endswith("folder.txt is a folder, or no regular file")
    Path("a.txt").write_text("x")
    assert texts_of("*.txt") == ["x"]


def bomb(name: str, unpacked: bytes) -> None:
    Path(name).write_bytes(compress(name, unpacked))


def test_a_line_has_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.DOCUMENT_BYTES == 64_000_000
    monkeypatch.setattr(files, "DOCUMENT_BYTES", 64_000)
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst"):
        bomb(name, jsonl(["x"]) + jsonl(["a" * 64_001]))
        assert error_of(name) == f"{name}:2: the line is longer than 64,000 bytes, the most that is allowed"


@pytest.mark.parametrize("layout", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}])
def test_a_page_has_a_limit_and_it_is_not_unpacked(folder: Path, layout: dict[str, Any]) -> None:
    table = pa.table({"text": ["x", "a" * (files.DOCUMENT_BYTES + 1)]})
    pq.write_table(table, "a.parquet", compression="zstd", **layout)
    assert Path("a.parquet").stat().st_size < 50_000
    assert error_of("a.parquet").startswith("a.parquet:1: a page of 'text' in this row group unpacks to 64,000,0")


def test_a_text_that_is_repeated_without_end_has_a_limit(folder: Path) -> None:
    often = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["a" * 10_000_000]))
    pq.write_table(pa.table({"text": often}), "a.parquet", compression="zstd")
    assert Path("a.parquet").stat().st_size < 10_000
    assert error_of("a.parquet").startswith("a.parquet: unpacks to more than 256,000,000 bytes")


FLIPS = """
import sys
from pathlib import Path
from cocomix.corpus.files import read_files
from cocomix.params import FilesParams
from cocomix.plumbing.errors import UserError
whole = Path("whole.parquet").read_bytes()
for at in range(int(sys.argv[1]), len(whole)):
    for bit in (16, 32):  # among them, the length of a list
        Path("a.parquet").write_bytes(bytes([*whole[:at], whole[at] ^ bit, *whole[at + 1 :]]))
        try:
            for document in read_files(FilesParams(paths=["a.parquet"])):
                document.stripped()
        except UserError:
            pass
"""


def test_no_flipped_bit_of_a_footer_ends_the_process(folder: Path) -> None:
    """Arrow aborts where some numbers of a footer are looked up that do not fit each other."""
    pq.write_table(pa.table({"text": TEXTS}), "whole.parquet", store_schema=False)
    whole = Path("whole.parquet").read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    done = subprocess.run([sys.executable, "-c", FLIPS, str(footer)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(
    texts=st.lists(st.text(max_size=300), min_size=1, max_size=60),
    dictionary=st.booleans(),
    version=st.sampled_from(["1.0", "2.0"]),
    statistics=st.booleans(),
)
def test_the_largest_page_is_at_least_as_large_as_any_text(
    folder: Path, texts: list[str], dictionary: bool, version: Any, statistics: bool
) -> None:
    layout: dict[str, Any] = {
        "use_dictionary": dictionary,
        "data_page_version": version,
        "write_statistics": statistics,
    }
    pq.write_table(pa.table({"text": texts}), "a.parquet", compression="zstd", data_page_size=500, **layout)
    with open("a.parquet", "rb") as file:
        (size,) = largest_pages(file, 0)
    assert max(len(text.encode()) for text in texts) <= size <= 10_000
    assert texts_of("a.parquet") == texts


def test_an_archive_has_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "UNPACKED_BYTES", 1000)
    monkeypatch.setattr(unpack, "UNPACKED_TIMES", 10)
    for name in ("a.parquet.zst", "a.parquet.gz", "a.txt.gz", "a.txt.zst", "a.jsonl.zst"):
        bomb(name, bytes(1_000_000))
        assert error_of(name).startswith(f"{name}: unpacks to more than ")
