"""Shared fixtures: small artifacts of exactly the real layout, in a temporary project folder."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cocomix.base.flops import sizes
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.interrupt import Interrupted
from cocomix.plumbing.progress import Progress
from cocomix.plumbing.runtime import runtime

CONTEXT, VOCAB = 16, 64
# The same examples each time, however long each takes: no luck in CI.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process that a test starts compiles the project anew
torch.set_num_threads(1)  # small tensors: threads would only wait for each other
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, as then would its children


@pytest.fixture(autouse=True)
def _fresh_runtime() -> Iterator[None]:
    runtime.cache_clear()
    yield
    runtime.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, made the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write texts by their names, with the folders around them."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@contextmanager
def stopped_beyond(amount: int) -> Iterator[None]:
    """Raise Interrupted, as a signal does, once progress has come beyond an amount."""
    done = 0

    def advance(self: Progress, amount_now: int, **_: Any) -> None:
        nonlocal done
        done += amount_now
        if done > amount:
            raise Interrupted(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "advance", advance)
        yield


@pytest.fixture
def tokens_folder(folder: Path) -> Path:
    """A published tokens artifact: 96, 24 and 24 windows of 16 tokens, in which the next token is predictable.

    Beside it is artifacts/base_tokens, of a base model that reads them too.
    """
    return publish_tokens()


@pytest.fixture
def base_folder(tokens_folder: Path) -> Path:
    """A published base model, random: a GPT-2 of 3 blocks and width 32 that reads the windows of `tokens_folder`."""
    return publish_base()


def publish_tokens() -> Path:
    """What `tokens_folder` is, in the working directory."""
    generator = np.random.default_rng(0)
    step = generator.integers(1, 4, size=(3,))
    with Work("tokenize", Path("artifacts/tokens"), {}, {}) as work:
        for number, (split, windows) in enumerate({"train": 96, "validation": 24, "test": 24}.items()):
            start = generator.integers(0, VOCAB, size=(windows, 1))
            noise = generator.random((windows, CONTEXT)) < 0.1
            ids = (start + step[number % 1] * np.arange(CONTEXT)) % VOCAB
            ids = np.where(noise, generator.integers(0, VOCAB, size=ids.shape), ids).astype(np.uint16)
            ends = np.append(np.flatnonzero(ids.reshape(-1) == 0) + 1, ids.size + 1)  # the last goes on in no window
            for name, array in {f"{split}.npy": ids, f"{split}.documents.npy": ends}.items():
                with work.write(name) as pending:
                    with pending.path.open("wb") as file:
                        np.save(file, array)
                    pending.rows = len(array)
            if split != "train":
                with work.write(f"{split}.groups.parquet") as pending:
                    groups = [f"package {each // 2}" for each in range(len(ends))]
                    pq.write_table(pa.table({"group": groups}), pending.path)
        vocabulary = {"<|endoftext|>": 0} | {f"w{each}": each for each in range(1, VOCAB)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        with work.write_folder() as target:
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
                target / "tokenizer"
            )
        work.finish(
            {
                "context": CONTEXT,
                "vocab_size": VOCAB,
                "eos_id": 0,
                "origin": {"source": "files"},
                "bytes_per_token": {"train": 4.0, "validation": 4.0, "test": 4.0},
            }
        )
        work.publish()
    with Work("base_tokens", Path("artifacts/base_tokens"), {}, {}) as work:
        work.finish({"tokenizer": "shared"})
        work.publish()
    return Path("artifacts/tokens")


def publish_base() -> Path:
    """What `base_folder` is, in the working directory."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=CONTEXT, vocab_size=VOCAB, initializer_range=0.2)
    config.bos_token_id = config.eos_token_id = 0
    with Work("base", Path("artifacts/base"), {}, {}) as work:
        with work.write_folder() as target:
            (model := GPT2LMHeadModel(config)).save_pretrained(target)
        work.finish(sizes(model, CONTEXT))
        work.publish()
    return Path("artifacts/base")
