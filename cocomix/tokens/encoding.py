"""Encode documents and people's texts: a special token that is spelt in a text is text.

Ids are neither added, truncated nor padded.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from cocomix.plumbing.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """Configure `tokenizer`, in place, for `ids_of`."""
    tokenizer.encode_special_tokens = True  # `<|endoftext|>` in a text is text, and does not end the document
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def ids_of(tokenizer: Tokenizer, texts: Sequence[str], where: str) -> list[list[int]]:
    """The token ids of each text.

    Args:
        tokenizer: configured by `plain`.
        where: where the texts are from, for the error.

    Raises:
        UserError: when the tokenizer cannot encode a text.
    """
    return [encoding.ids for encoding in _encoded(tokenizer.encode_batch_fast, texts, where)]


def spans_of(tokenizer: Tokenizer, texts: Sequence[str], where: str) -> list[NDArray[np.int64]]:
    """Where each token of `ids_of` begins and ends in its text, in characters: int64 [tokens, 2] for each text.

    The span of a token that holds a part of a character is the whole character. See `cocomix.tokens.alignment` for
    what else spans leave out.

    Raises:
        UserError: when the tokenizer cannot encode a text.
    """
    return [_spans(encoding) for encoding in _encoded(tokenizer.encode_batch, texts, where)]


def ids_and_spans_of(tokenizer: Tokenizer, text: str, where: str) -> tuple[list[int], NDArray[np.int64]]:
    """`ids_of` and `spans_of` one text, which is encoded once.

    Raises:
        UserError: when the tokenizer cannot encode it.
    """
    (encoding,) = _encoded(tokenizer.encode_batch, [text], where)
    return encoding.ids, _spans(encoding)


def _spans(encoding: Encoding) -> NDArray[np.int64]:
    return np.array(encoding.offsets, np.int64).reshape(-1, 2)


def _encoded(encode: Callable[..., list[Encoding]], texts: Sequence[str], where: str) -> list[Encoding]:
    try:
        return encode(texts, add_special_tokens=False)
    except BaseException as error:
        # The library's Rust code raises PanicException, which is no Exception: for a pattern that backtracks too often.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"the tokenizer cannot encode {where}: {' '.join(str(error).split())}") from None
        raise


def ids_of_text(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """The token ids of a text that a person gives, encoded as documents are.

    Raises:
        UserError: when the tokenizer cannot encode it.
    """
    return ids_of(plain(tokenizer.backend_tokenizer), [text], "the text")[0]
