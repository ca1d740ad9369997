"""Text to measure a language model on: token ids, and the bytes that they stand for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders

from cocomix.tokens.windows import Split, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Text(NamedTuple):
    """Documents one after the other, each ended by EOS, in windows that follow each other."""

    windows: NDArray[np.unsignedinteger]
    """Token ids: [windows, context]."""
    eos_id: int
    token_bytes: NDArray[np.float64]
    """UTF-8 bytes that each token id stands for: [vocab]."""
    groups: Sequence[str]
    """Of each document, the last ones of which may be in no window: see `cocomix.corpus.store.Document`."""


def split_text(tokens: Tokens, split: Split) -> Text:
    """A split of the corpus."""
    bytes_of = token_bytes(tokens.tokenizer(), tokens.bytes_per_token(split))
    return Text(tokens.windows(split), tokens.eos_id, bytes_of, tokens.groups(split))


def token_bytes(tokenizer: "PreTrainedTokenizerFast", average: float) -> NDArray[np.float64]:
    """UTF-8 bytes that each token id stands for, [vocab]: exact for byte-level BPE, else `average` for every token.

    Other tokenizers drop or change text on its way to tokens, and it depends on the neighbours what a token stands for.
    """
    vocabulary = tokenizer.get_vocab()
    bytes_of = np.full(max(vocabulary.values()) + 1, average)
    if isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        for token, number in vocabulary.items():
            bytes_of[number] = len(token)  # a character a byte
        for token, number in tokenizer.get_added_vocab().items():
            bytes_of[number] = 0 if token in tokenizer.all_special_tokens else len(token.encode())
    return bytes_of
