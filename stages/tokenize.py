"""Stage `tokenize`: train or load the tokenizer, and write the corpus as windows of token ids."""

import sys

if __name__ == "tokenize":  # a stage was started by its path, and Python found this file for its module `tokenize`
    sys.exit("error: start a stage from the project's folder by its name, such as: python -m stages.corpus")

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from cocomix.check.external import digest_of
from cocomix.check.preflight import check_validation_windows
from cocomix.corpus.splits import SPLITS
from cocomix.params import Params, TokenizeParams
from cocomix.plumbing.artifact import Artifact, Work, write_atomically
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import say
from cocomix.tokens.pack import count_tokens, document_ends, encode, write_windows
from cocomix.tokens.tokenizer import load_pretrained, load_trained, sample_texts, train_tokenizer
from stages.stage import ARTIFACTS, main, produce, to_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def run(params: Params) -> None:
    """Make artifacts/tokens."""
    section = params.tokenize
    corpus = Artifact(ARTIFACTS / "corpus")

    def compute(work: Work) -> Mapping[str, Any]:
        tokenizer = _tokenizer(section, corpus, work)
        work.confirm_inputs()
        with work.write_folder() as folder:
            tokenizer.save_pretrained(folder / "tokenizer")
        eos_id = tokenizer.eos_token_id
        vocab_size = max(tokenizer.get_vocab().values()) + 1
        metrics: dict[str, Any] = {"vocab_size": vocab_size}
        texts = {split: corpus.file(f"{split}.parquet") for split in SPLITS}
        encoded = encode(texts, work.files / "tokenizer/tokenizer.json", eos_id, vocab_size, work.scratch)
        for split, shards in encoded.items():
            tokens = count_tokens(shards)
            windows = tokens // section.context
            if not windows:
                raise UserError(
                    f"tokenize: the {split} split has {tokens} tokens, too few for one window of "
                    f"tokenize.context ({section.context})"
                )
            if not work.has(f"{split}.npy"):
                with work.write(f"{split}.npy") as pending:
                    write_windows(shards, section.context, pending.path)
                    pending.rows = windows
            with work.write(f"{split}.documents.npy") as pending:
                ends = document_ends(shards)
                np.save(pending.path, ends)
                pending.rows = len(ends)
            if split != "train":
                with work.write(f"{split}.groups.parquet") as pending:
                    groups = pq.read_table(texts[split], columns=["group"])
                    pq.write_table(groups, pending.path, compression="zstd")
                    pending.rows = len(groups)
            bytes_per_token = corpus.about["splits"][split]["bytes"] / tokens
            metrics[split] = {"tokens": tokens, "windows": windows, "bytes_per_token": bytes_per_token}
        check_validation_windows(params, metrics["validation"]["windows"])
        (work.side / "metrics.json").write_bytes(to_json(metrics))
        return {
            "context": section.context,
            "vocab_size": vocab_size,
            "eos_id": eos_id,
            "origin": corpus.about["origin"],
            "bytes_per_token": {split: metrics[split]["bytes_per_token"] for split in SPLITS},
        }

    produce(
        "tokenize",
        ARTIFACTS / "tokens",
        {"corpus": corpus, "tokenizer": digest_of("tokenize.pretrained", params) or ""},
        section.model_dump(mode="json"),
        compute,
        side={"metrics.json": Path("metrics/tokenize.json")},
    )


def _tokenizer(section: TokenizeParams, corpus: Artifact, work: Work) -> "PreTrainedTokenizerFast":
    if section.source == "pretrained":
        assert section.pretrained
        return load_pretrained(section.pretrained, section.revision)
    trained = work.scratch / "trained.json"
    if not trained.exists():
        say(f"tokenize: training a tokenizer of {section.vocab_size} entries")
        texts = sample_texts(corpus.file("train.parquet"), section.train_megabytes * 1e6)
        write_atomically(trained, train_tokenizer(texts, section.vocab_size).to_str().encode())
    return load_trained(trained)


if __name__ == "__main__":
    main(run)
