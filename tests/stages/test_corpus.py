"""The stages corpus and tokenize as the programs that DVC runs."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from cocomix.corpus.splits import SPLITS
from cocomix.plumbing.artifact import Artifact
from cocomix.tokens.windows import Tokens

REPOSITORY = Path(__file__).parents[2]
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "ou") for c in ("", "n", "st", "nder", "ly")]


@pytest.fixture
def project(folder: Path) -> Path:
    """A project whose corpus is `data/*.jsonl`, with a small vocabulary and windows."""
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["corpus"] |= {"source": "files", "validation_share": 0.1, "test_share": 0.1}
    params["corpus"]["files"]["paths"] = ["data/*"]
    params["tokenize"] |= {"source": "train", "vocab_size": 500, "context": 32}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    Path("data").mkdir()
    return folder


def change(section: str, **values: object) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params))


def write_data(megabytes: float, name: str = "data/a.jsonl") -> None:
    generator = random.Random(name)
    size = 0
    with zstandard.open(name, "wb") if name.endswith(".zst") else Path(name).open("wb") as file:
        while size < megabytes * 1e6:
            text = " ".join(generator.choices(WORDS, k=400))
            size += len(text)
            file.write(json.dumps({"text": text}).encode() + b"\n")


def start(stage: str, workers: int = 2) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COCOMIX_WORKERS": str(workers), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"stages.{stage}"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def run(stage: str, workers: int = 2) -> tuple[int, str]:
    """Exit status and what was printed."""
    process = start(stage, workers)
    _, printed = process.communicate()
    return process.returncode, printed


def start_several(stage: str, count: int) -> list[subprocess.Popen[str]]:
    """Processes of one stage with the variables of torchrun, as on several machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"PYTHONPATH": str(REPOSITORY), "COCOMIX_DEVICE": "cpu", "COCOMIX_WORKERS": "1"}
    shared |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", f"stages.{stage}"]
    return [
        subprocess.Popen(command, env=shared | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(count)
    ]


def digests() -> dict[str, str]:
    return {
        f"{name}/{file}": record.sha256
        for name in ("corpus", "tokens")
        for file, record in Artifact(Path("artifacts", name)).manifest.files.items()
    }


def test_text_files_become_windows_that_read_back_as_the_text(project: Path) -> None:
    write_data(0.5)
    for stage in ("corpus", "tokenize"):
        status, printed = run(stage)
        assert status == 0, printed
    tokens = Tokens()
    tokenizer = tokens.tokenizer()
    metrics = json.loads(Path("metrics/tokenize.json").read_text())
    for split in SPLITS:
        table = pq.read_table(f"artifacts/corpus/{split}.parquet")
        texts = table["text"].to_pylist()
        assert split == "train" or tokens.groups(split) == table["group"].to_pylist()
        ids = np.asarray(tokens.windows(split)).reshape(-1)
        assert metrics[split]["windows"] == len(ids) // 32
        assert metrics[split]["tokens"] - len(ids) < 32
        read = tokenizer.decode(ids).split("<|endoftext|>")
        assert read[:-1] == texts[: len(read) - 1]
        assert len(read) in (len(texts), len(texts) + 1)
        assert texts[len(read) - 1].startswith(read[-1].rstrip("\ufffd")) if len(read) == len(texts) else not read[-1]
        size = sum(len(text.encode()) for text in texts)
        assert tokens.bytes_per_token(split) == size / metrics[split]["tokens"]
    corpus = json.loads(Path("metrics/corpus.json").read_text())
    assert corpus["sources"] == 1
    assert corpus["train"]["bytes"] == sum(
        len(text) for text in pq.read_table("artifacts/corpus/train.parquet")["text"].to_pylist()
    )


def write_planted(name: str) -> None:
    """Documents, near-duplicates of 40 of them, and 25 with a piece of `tests.txt`."""
    generator = random.Random(1)
    documents = [generator.choices(WORDS, k=300) for _ in range(2000)]
    near = [[*words[:150], "changed", *words[151:]] for words in documents[:40]]
    tested = generator.choices(WORDS, k=500)
    pieces = [[*words[:100], *tested[at : at + 20], *words[100:]] for at, words in enumerate(documents[100:125])]
    documents[100:125] = pieces
    Path("tests.txt").write_text(" ".join(tested))
    Path(name).write_text("".join(json.dumps({"text": " ".join(words)}) + "\n" for words in [*documents, *near]))


@pytest.mark.slow
def test_processes_of_several_machines_make_the_same_bytes_and_go_on_after_a_kill(project: Path) -> None:
    write_planted("data/a.jsonl")
    write_data(12, "data/b.jsonl")
    change("corpus", near_duplicates=0.8, decontaminate="drop")
    change("evaluate", corpora={"planted": {"paths": ["tests.txt"]}})
    for stage in ("corpus", "tokenize"):
        assert run(stage)[0] == 0
    alone = digests()
    metrics = json.loads(Path("metrics/corpus.json").read_text())
    assert metrics["contaminated"] == {"corpora.planted": {"documents": 25, "texts": 1, "long_texts": 1}}
    assert metrics["dropped"] == {"contaminated documents": 25, "near-duplicates": 40}
    shutil.rmtree("artifacts")
    for stage, first_part in (("corpus", "parts/*.arrow"), ("tokenize", "*/*.npy")):
        killed = start_several(stage, 2)
        while not list(Path(f"artifacts/.work/{stage}").glob(f"*/scratch/{first_part}")):
            assert killed[0].poll() is None, killed[0].communicate()[1]
            time.sleep(0.01)
        for process in killed:
            process.kill()
        for process in killed:
            process.communicate()
        ended = [(process.communicate()[1], process.returncode) for process in start_several(stage, 3)]
        assert [status for _, status in ended] == [0, 0, 0], ended
    assert digests() == alone
    assert json.loads(Path("metrics/corpus.json").read_text())["dropped"] == metrics["dropped"]


def test_counting_contaminated_documents_does_not_change_the_corpus(project: Path) -> None:
    write_planted("data/a.jsonl")
    assert run("corpus")[0] == 0
    digest = Artifact(Path("artifacts/corpus")).digest
    change("corpus", decontaminate="count")
    change("evaluate", corpora={"planted": {"paths": ["tests.txt"]}})
    for text, documents in ((Path("tests.txt").read_text(), 25), ("nothing to find", 0)):
        Path("tests.txt").write_text(text)
        assert run("corpus")[0] == 0
        assert Artifact(Path("artifacts/corpus")).digest == digest
        metrics = json.loads(Path("metrics/corpus.json").read_text())
        assert metrics["contaminated"]["corpora.planted"]["documents"] == documents


def test_a_limit_and_splits_of_few_documents_are_named(project: Path) -> None:
    write_data(0.05)
    change("corpus", megabytes=0.04)
    status, printed = run("corpus")
    assert status == 0
    assert "MB; the rest was left out, because corpus.megabytes is 0.04\n" in printed
    assert "corpus: kept 0.03" in printed
    documents = json.loads(Path("metrics/corpus.json").read_text())["test"]["documents"]
    assert documents < 30
    assert f"corpus: the test split has {documents} documents: intervals over so few say little" in printed


def test_bad_input_is_one_line_and_status_2(project: Path) -> None:
    assert run("corpus")[0] == 2
    write_data(0.05)
    assert run("corpus")[0] == 0
    change("tokenize", context=1_000_000)
    status, printed = run("tokenize")
    assert status == 2
    assert "the train split has" in printed.splitlines()[-1]
    assert not Path("artifacts/tokens").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stages_killed_at_any_time_end_with_the_same_bytes(project: Path, number: signal.Signals) -> None:
    write_data(10)
    seconds = {}
    for stage in ("corpus", "tokenize"):
        begin = time.monotonic()
        assert run(stage, workers=1)[0] == 0
        seconds[stage] = time.monotonic() - begin
    undisturbed = digests()
    shutil.rmtree("artifacts")
    generator = random.Random(0)
    stopped = (-number,) if number == signal.SIGKILL else (128 + number, -number)  # before the handler is there
    for stage, whole in seconds.items():
        for _ in range(6):
            process = start(stage)
            time.sleep(generator.uniform(0.2, 0.9) * whole)
            process.send_signal(number)
            process.communicate()
            assert process.returncode in (*stopped, 0)
        assert run(stage)[0] == 0
    assert digests() == undisturbed


@pytest.mark.slow
def test_workers_end_with_a_killed_stage(project: Path) -> None:
    write_data(20)
    assert run("corpus")[0] == 0
    process = start("tokenize")
    time.sleep(6)
    process.kill()
    process.communicate(timeout=20)  # its standard error stays open while a worker lives


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(project: Path) -> None:
    peaks: dict[str, list[int]] = {"corpus": [], "tokenize": []}
    for number, megabytes in enumerate((60, 60)):  # the parts in flight fill 40 MB
        write_data(megabytes, f"data/{number}.jsonl.zst")
        for stage, found in peaks.items():
            process = start(stage)
            assert process.stderr is not None
            process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            found.append(usage.ru_maxrss)  # kilobytes, of the largest process
    for small, large in peaks.values():
        assert large < small + 40_000
