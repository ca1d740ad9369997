"""The needs of what makes text and tokens: corpus, tokenize, base_tokens."""

from cocomix.params import Params
from cocomix.shapes.planning.corpus import CorpusSize
from cocomix.shapes.planning.needs import PLAIN, TOKENIZER_BYTES, StageNeeds
from cocomix.shapes.planning.sizes import Sizes

CORPUS_COMPRESSION = 0.4
"""Compressed over raw size of English text with zstd; measured on the default corpus: 0.37."""
ENCODINGS = 4.5
"""Times that `tokenize` could encode the text while `base_tokens` encodes it in the base model's tokens, and then in
both models' with their places, which takes longer; measured on Python's help topics."""


def corpus_needs(sizes: Sizes) -> StageNeeds:
    """The needs of `corpus`."""
    total = sum(sizes.text.bytes.values())
    return StageNeeds(total, disk=CORPUS_COMPRESSION * total, memory=150e6 + 3 * min(total, 100e6))


def tokenize_needs(params: Params, sizes: Sizes) -> StageNeeds:
    """The needs of `tokenize`."""
    text, words = sizes.text, sizes.words
    total = sum(text.bytes.values())
    windows = sum(text.windows(split, words.context) for split in text.tokens)
    return StageNeeds(
        total,
        disk=_ids(text) + 4 * windows + TOKENIZER_BYTES * words.vocab_size,
        scratch=_ids(text),
        memory=150e6 + 3 * min(params.tokenize.train_megabytes * 1e6, total),
    )


def base_tokens_needs(params: Params, sizes: Sizes) -> StageNeeds:
    """The needs of `base_tokens`."""
    if params.base.tokenizer == "shared":
        return StageNeeds(disk=500, memory=PLAIN)
    text, read = sizes.text, sizes.base_text
    labelled = text.tokens["train"] + text.tokens["validation"]
    place = 4 if max(read.tokens.values()) < 2**31 else 8
    return StageNeeds(
        ENCODINGS * sum(text.bytes.values()),
        disk=_ids(read) + place * labelled + TOKENIZER_BYTES * read.vocab_size,
        scratch=_ids(read) + 8 * labelled,
        memory=250e6,
    )


def _ids(text: CorpusSize) -> float:
    """Bytes of the token ids."""
    return sum(text.tokens.values()) * (2 if text.vocab_size <= 2**16 else 4)
