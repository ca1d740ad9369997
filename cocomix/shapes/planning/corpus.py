"""The size of a corpus, in bytes and tokens: measured, or estimated before it exists."""

import math
from typing import Any, NamedTuple

from cocomix.params import Params
from cocomix.plumbing.errors import UserError

INSTALLED_DOCS_BYTES = 13e6
"""Text in the documentation of some 200 packages, where no parameter limits it."""
BYTES_PER_TOKEN = ((512, 2.3), (4096, 3.86), (50257, 4.40))
"""By vocabulary size of a byte-level BPE: smoke test, default run, GPT-2's on OpenWebText."""
PRETRAINED_VOCABULARY = 50257
"""GPT-2's, assumed until the stage has read the tokenizer."""


class Words(NamedTuple):
    """The assumed `Vocabulary` before tokens exist."""

    vocab_size: int
    context: int
    eos_id: int = 0


class CorpusSize(NamedTuple):
    """The size of a corpus."""

    bytes: dict[str, float]
    """UTF-8 bytes of each split."""
    tokens: dict[str, float]
    """Tokens of each split."""
    vocab_size: int

    def windows(self, split: str, context: int) -> float:
        """Whole windows of a split."""
        return self.tokens[split] // context

    def positions(self, context: int) -> float:
        """Tokens of training and validation, in whole windows: those that have labels and draws."""
        return (self.windows("train", context) + self.windows("validation", context)) * context


def measured_corpus(corpus: dict[str, Any], tokenize: dict[str, Any]) -> CorpusSize:
    """The size of an existing corpus, from the metrics of the stages corpus and tokenize."""
    splits = ("train", "validation", "test")
    return CorpusSize(
        {split: corpus[split]["bytes"] for split in splits},
        {split: tokenize[split]["tokens"] for split in splits},
        tokenize["vocab_size"],
    )


def estimated_corpus(params: Params, corpus_bytes: float | None) -> CorpusSize:
    """Estimate the size of a corpus before it exists.

    Args:
        corpus_bytes: size of the source, if known.

    Raises:
        UserError: when neither the source nor corpus.megabytes gives a size.
    """
    known = INSTALLED_DOCS_BYTES if params.corpus.source == "installed-docs" else corpus_bytes
    _, most = params.corpus.limit
    total = min(most, math.inf if known is None else known)
    if math.isinf(total):
        raise UserError(
            "corpus.megabytes: null: the size of a dataset of the hub is not known before it is read; set a limit"
        )
    shares = {"validation": params.corpus.validation_share, "test": params.corpus.test_share}
    shares = {"train": 1 - sum(shares.values())} | shares
    trained = params.tokenize.source == "train"
    sizes = {split: share * total for split, share in shares.items()}
    return _tokenized(sizes, params.tokenize.vocab_size if trained else PRETRAINED_VOCABULARY)


def in_base_tokens(params: Params, text: CorpusSize) -> CorpusSize:
    """The corpus in the base model's tokens."""
    return text if params.base.tokenizer == "shared" else _tokenized(text.bytes, PRETRAINED_VOCABULARY)


def _tokenized(sizes: dict[str, float], vocab_size: int) -> CorpusSize:
    bytes_per_token = by_vocabulary(BYTES_PER_TOKEN, vocab_size)
    return CorpusSize(sizes, {split: size / bytes_per_token for split, size in sizes.items()}, vocab_size)


def by_vocabulary(points: tuple[tuple[int, float], ...], vocab_size: int) -> float:
    """Interpolate and extrapolate linearly in the logarithm of the vocabulary size.

    Args:
        points: three, each a vocabulary size and the value there.
    """
    (left, low), (middle, between), (right, high) = ((math.log2(size), each) for size, each in points)
    at = math.log2(vocab_size)
    if at < middle:
        return low + (between - low) * (at - left) / (middle - left)
    return between + (high - between) * (at - middle) / (right - middle)
