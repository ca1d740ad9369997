"""Text to measure a language model on: token ids, and the bytes that they stand for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders

from cocomix.tokens.windows import Split, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class EvaluationText(NamedTuple):
    """Documents one after the other, each ended by EOS, in windows that follow each other."""

    windows: NDArray[np.unsignedinteger]
    """Token ids: [windows, context]."""
    ends: NDArray[np.int64]
    """The place after each document's EOS, ascending: [documents]. The last ones may be in no window."""
    token_bytes: NDArray[np.float64]
    """UTF-8 bytes that each token id stands for within a text: [vocab]."""
    end_bytes: float
    """Those that the EOS at the end of a document counts for."""
    groups: Sequence[str]
    """Of each document: see `cocomix.corpus.store.Document`."""


def split_text(tokens: Tokens, split: Split) -> EvaluationText:
    """A split of the corpus."""
    sizes = token_bytes(tokens.tokenizer(), tokens.bytes_per_token(split))
    return EvaluationText(tokens.windows(split), tokens.ends(split), *sizes, tokens.groups(split))


class TokenBytes(NamedTuple):
    """UTF-8 bytes that tokens stand for: see `EvaluationText`."""

    token_bytes: NDArray[np.float64]
    end_bytes: float


def token_bytes(tokenizer: "PreTrainedTokenizerFast", average: float) -> TokenBytes:
    """How much text each token stands for: exact for byte-level BPE, else `average` for every token.

    Other tokenizers drop or change text on its way to tokens, and it depends on the neighbours what a token stands for.
    """
    vocabulary = tokenizer.get_vocab()
    bytes_of = np.full(max(vocabulary.values()) + 1, average)
    if not isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return TokenBytes(bytes_of, average)
    for token, number in vocabulary.items():
        bytes_of[number] = len(token)  # a character a byte
    for token, number in tokenizer.get_added_vocab().items():
        if token not in tokenizer.all_special_tokens:  # a special one is never found in a text as it is spelt
            bytes_of[number] = len(token.encode())
    return TokenBytes(bytes_of, 0.0)
