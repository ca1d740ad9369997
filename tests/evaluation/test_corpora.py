import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cocomix.corpus.build import build
from cocomix.evaluation.corpora import corpus_digest, read_corpus
from cocomix.params import CorpusParams, EvaluationCorpusParams, FilesParams
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.errors import UserError
from cocomix.tokens.pack import encode, write_windows
from cocomix.tokens.tokenizer import load_trained, train_tokenizer
from cocomix.tokens.windows import Tokens

CONTEXT = 8
DOCUMENTS = [f" document {number} is about {'cats and ' * (number % 7)}dogs.\n" for number in range(60)]
SPECIAL = ["", "   ", "an <|endoftext|> in the text", "naïve 猫"]


@pytest.fixture
def tokens(folder: Path) -> Tokens:
    """A tokens artifact with a byte-level tokenizer."""
    with Work("tokenize", Path("artifacts/tokens"), {}, {}) as work:
        for split in ("train", "validation", "test"):
            with work.write(f"{split}.npy") as pending, pending.path.open("wb") as file:
                np.save(file, np.zeros((1, CONTEXT), np.uint16))
                pending.rows = 1
        with work.write_folder() as target:
            trained = work.scratch / "tokenizer.json"
            trained.write_text(train_tokenizer(DOCUMENTS, 300).to_str())
            load_trained(trained).save_pretrained(target / "tokenizer")
        work.finish({"context": CONTEXT, "vocab_size": 300, "eos_id": 0, "origin": {"source": "files"}})
        work.publish()
    return Tokens(Path("artifacts/tokens"))


def write(folder: Path, documents: list[str]) -> EvaluationCorpusParams:
    (folder / "texts.jsonl").write_text("".join(json.dumps({"body": each}) + "\n" for each in documents))
    return EvaluationCorpusParams(paths=["texts.jsonl"], text_field="body")


@pytest.mark.parametrize("megabytes", [None, 1e-3])
def test_it_is_packed_like_the_corpus(
    tokens: Tokens, folder: Path, monkeypatch: pytest.MonkeyPatch, megabytes: float | None
) -> None:
    monkeypatch.setenv("COCOMIX_WORKERS", "1")
    monkeypatch.setattr("cocomix.evaluation.corpus_files._BATCH_BYTES", 100)
    params = write(folder, [*DOCUMENTS, *SPECIAL]).model_copy(update={"megabytes": megabytes})
    (folder / "built").mkdir()
    files = FilesParams(paths=params.paths, text_field="body")
    # Nearly all documents go to the split `train`, and none is there twice.
    build_params = CorpusParams(
        source="files", files=files, megabytes=megabytes, validation_share=1e-12, test_share=1e-12
    )
    with pytest.raises(UserError, match="no document for the validation split"):
        build(build_params, folder / "built")
    texts = {"train": folder / "built" / "train.parquet"}
    tokenizer = tokens.artifact.file("tokenizer/tokenizer.json")
    shards = encode(texts, tokenizer, 0, 300, folder / "built", "tokenize")["train"]  # type: ignore[arg-type]
    write_windows(shards, CONTEXT, folder / "expected.npy")
    text = read_corpus("more", params, tokens)
    assert np.array_equal(text.windows, np.load(folder / "expected.npy"))
    assert text.windows.dtype == np.uint16
    assert text.windows.reshape(-1)[text.ends[:-1] - 1].tolist() == [0] * (len(text.ends) - 1)
    assert np.count_nonzero(np.load(folder / "expected.npy") == 0) in (len(text.ends) - 1, len(text.ends))
    assert list(text.groups) == pq.read_table(texts["train"])["group"].to_pylist()
    if megabytes is None:
        kept = [each.strip().encode() for each in [*DOCUMENTS, *SPECIAL] if each.strip()]
        dropped = sum(map(len, kept)) - text.token_bytes[text.windows[text.windows != 0]].sum()
        assert 0 <= dropped < len(b" document 59 is about dogs.") * CONTEXT  # tokens after the last window


@pytest.mark.parametrize(
    ("documents", "changes", "message"),
    [
        (["a"], {}, "evaluate.corpora.more: has 2 tokens, too few for one window of tokenize.context (8)"),
        ([], {}, "evaluate.corpora.more: has 0 tokens, too few for one window of tokenize.context (8)"),
        (
            ["a long document " * 99],
            {"megabytes": 1e-3},
            "evaluate.corpora.more: has 0 tokens in whole documents up to megabytes (0.001), too few for one window",
        ),
        (DOCUMENTS, {"text_field": "bdy"}, "no field 'bdy' (evaluate.corpora.more.text_field); did you mean 'body'?"),
        (DOCUMENTS, {"paths": ["more/*.txt"]}, "evaluate.corpora.more.paths: 'more/*.txt' matches no file in"),
        (["\ud800"], {}, "texts.jsonl:1: half a surrogate pair at character 1: not Unicode"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_its_own_terms(
    tokens: Tokens, folder: Path, documents: list[str], changes: dict[str, object], message: str
) -> None:
    params = write(folder, documents).model_copy(update=changes)
    with pytest.raises(UserError) as error:
        read_corpus("more", params, tokens)
    assert message in str(error.value)


def test_its_digest_follows_files_and_parameters(tokens: Tokens, folder: Path) -> None:
    params = write(folder, DOCUMENTS)
    first = corpus_digest("more", params, tokens)
    assert corpus_digest("other name", params, tokens) == first
    assert corpus_digest("more", params.model_copy(update={"megabytes": 1.0}), tokens) != first
    os.utime("texts.jsonl", (0, 0))
    assert corpus_digest("more", params, tokens) == first
    write(folder, DOCUMENTS[1:])
    assert corpus_digest("more", params, tokens) != first
