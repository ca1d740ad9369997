"""Text to evaluate a language model on: token ids and the bytes that they stand for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders

from cocomix.corpus.splits import Split
from cocomix.tokens.windows import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class EvaluationText(NamedTuple):
    """Consecutive documents, each ended by EOS, in consecutive windows."""

    windows: NDArray[np.unsignedinteger]
    """Token ids: [windows, context]."""
    ends: NDArray[np.int64]
    """Index after each document's EOS, ascending: [documents]. The last documents may lie outside the windows."""
    token_bytes: NDArray[np.float64]
    """UTF-8 bytes of each token id within a text: [vocab]."""
    end_bytes: float
    """UTF-8 bytes that the EOS at the end of a document counts for."""
    groups: Sequence[str]
    """Group of each document: see `cocomix.corpus.store.Document`."""


def split_text(tokens: Tokens, split: Split) -> EvaluationText:
    """Read a split of the corpus."""
    sizes = token_bytes(tokens.tokenizer(), tokens.bytes_per_token(split))
    return EvaluationText(tokens.windows(split), tokens.ends(split), *sizes, tokens.groups(split))


class TokenBytes(NamedTuple):
    """UTF-8 bytes per token: see `EvaluationText`."""

    token_bytes: NDArray[np.float64]
    end_bytes: float


def token_bytes(tokenizer: "PreTrainedTokenizerFast", average: float) -> TokenBytes:
    """UTF-8 bytes of each token: exact for byte-level BPE, else `average` for every token.

    Other tokenizers drop or normalise text, and the text of a token depends on its neighbours.
    """
    vocabulary = tokenizer.get_vocab()
    bytes_of = np.full(max(vocabulary.values()) + 1, average)
    if not isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return TokenBytes(bytes_of, average)
    for token, number in vocabulary.items():
        bytes_of[number] = len(token)  # one character per byte
    for token, number in tokenizer.get_added_vocab().items():
        if token not in tokenizer.all_special_tokens:  # the text of a special token is never encoded as that token
            bytes_of[number] = len(token.encode())
    return TokenBytes(bytes_of, 0.0)
