"""Stage `tokenize`: train or load the tokenizer, and write the corpus as windows of token ids."""

import sys

if __name__ == "tokenize":  # a stage was started by its path, and Python found this file for its module `tokenize`
    sys.exit("error: start a stage from the project's folder by its name, such as: python -m stages.corpus")

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocomix.check.external import digest_of
from cocomix.check.tokens import check_dropped_tokens, check_validation_windows
from cocomix.params import Params, TokenizeParams
from cocomix.plumbing import distributed
from cocomix.plumbing.artifact import Artifact, Work, write_atomically
from cocomix.plumbing.progress import say
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.pack import pack_corpus
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
        check_dropped_tokens(params, tokenizer.get_vocab(), "shared")
        packed = pack_corpus(work, corpus, tokenizer, section.context, "tokenize.context")
        check_validation_windows(params, packed.metrics["validation"]["windows"])
        if runtime().rank == 0:
            (work.side / "metrics.json").write_bytes(to_json(packed.metrics))
        return packed.about

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
    if runtime().rank == 0 and not trained.exists():
        say(f"tokenize: training a tokenizer of {section.vocab_size} entries")
        texts = sample_texts(corpus.file("train.parquet"), section.train_megabytes * 1e6)
        write_atomically(trained, train_tokenizer(texts, section.vocab_size).to_str().encode())
    distributed.barrier()
    return load_trained(distributed.see(trained))


if __name__ == "__main__":
    main(run, by_torchrun=True)
