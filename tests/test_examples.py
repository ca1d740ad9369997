"""The programs in examples/, with what they need; and text in the form that datatrove writes, without it."""

import gzip
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cocomix.corpus.files import read_files
from cocomix.params import FilesParams

ROOT = Path(__file__).parents[1]
DATATROVE = ROOT / ".venv-datatrove/bin/python"
"""The environment of examples/clean_text.txt, if someone has made it."""
needs_datatrove = pytest.mark.skipif(not DATATROVE.exists(), reason="needs .venv-datatrove: see examples/clean_text.py")


def texts(*paths: str) -> list[str]:
    return [document.text for document in read_files(FilesParams(paths=list(paths)))]


def prose(seed: int) -> str:
    """Text with enough stop words and words of usual length for a quality filter."""
    generator = random.Random(seed)
    words = [f"{a}{b}{c}" for a in ("b", "cl", "dr", "st") for b in ("a", "e", "ou") for c in ("nder", "st", "rmal")]
    sentences = (f"The {' '.join(generator.choices(words, k=9))} that have been with the others." for _ in range(20))
    return " ".join(sentences)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"text": prose(n), "id": f"a/{n}", "metadata": {"url": f"b/{n}", "score": n / 2}} for n in range(count)]


def test_text_in_the_form_of_datatroves_writers_is_read(folder: Path) -> None:
    found = rows(5)
    for number in range(2):
        with gzip.open(f"{number:05d}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in found[number::2])
    pq.write_table(pa.Table.from_pylist(found), "00000.parquet", compression="snappy")
    assert sorted(texts("*.jsonl.gz")) == sorted(row["text"] for row in found)
    assert texts("*.parquet") == [row["text"] for row in found]


@needs_datatrove
@pytest.mark.slow
def test_datatrove_cleans_text_and_hands_it_over(folder: Path) -> None:
    Path("raw").mkdir()
    documents = [prose(seed) for seed in range(40)]
    near = [document.replace(" clander ", " other ", 1) for document in documents[:10]]
    garbage = ["### ... " * 300] * 5
    for number in range(2):
        lines = [json.dumps({"text": text}) + "\n" for text in [*documents, *near, *garbage][number::2]]
        Path(f"raw/{number}.jsonl").write_text("".join(lines))
    command = [str(DATATROVE), str(ROOT / "examples/clean_text.py"), "raw", "clean", "--tasks", "2", "--workers", "1"]
    for _ in range(2):  # what is complete is not done again
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        found = texts("clean/text/*.jsonl.gz")
        assert len(found) == 40
        assert {*documents[10:]} <= {*found} <= {*documents, *near}


@needs_datatrove
@pytest.mark.slow
def test_what_datatroves_parquet_writer_writes_is_read(folder: Path) -> None:
    code = """
from datatrove.data import Document
from datatrove.pipeline.writers import ParquetWriter
with ParquetWriter("out") as writer:
    for number in range(3):
        writer.write(Document(text=f"Text {number}.", id=str(number), metadata={"url": "a", "score": 0.5}))
"""
    subprocess.run([str(DATATROVE), "-c", code], check=True)
    assert texts("out/*.parquet") == ["Text 0.", "Text 1.", "Text 2."]
