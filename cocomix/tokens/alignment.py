"""Align two tokenizers' tokens of the same text, so that labels of one model's positions become another's.

A student's position gets the labels of the last position of the base model that has seen no more of the document than
the student. Places in the text are counted in characters, in which byte-level tokens may end in the middle. The spans
that tokenizers give say too little for a guarantee, in two ways:

- A token that holds the first bytes of a character has the whole character as its span. So the student is taken to have
  read only what lies before the spans of all its later tokens (`surely_read`).
- Where a normaliser composes characters (NFC: e and U+0301 become one letter), the span is the first one alone, and the
  others may lie in no span. So the base model is taken to have read on to its next token, or to white space, which
  tokenizers leave out between words; and further over combining characters, which a normaliser may put into another
  order (`possibly_read`).
"""

from unicodedata import combining, normalize

import numpy as np
from numpy.typing import NDArray

WHITE_SPACE = np.array([each for each in range(0x3001) if chr(each).isspace()], np.uint32)
COMBINING = np.array([each for each in range(0x20000) if combining(normalize("NFKD", chr(each))[0])], np.uint32)
"""Code points that join what is before them, also after a normaliser alone (U+FF9E, a mark of half width). There are
none beyond the range."""


def aligned(text: str, student: NDArray[np.int64], base: NDArray[np.int64]) -> NDArray[np.int64]:
    """The base model's token whose labels each token of a student gets: int64 [tokens of the student]; -1: none.

    It is the last one that has certainly seen no more of the text.

    Args:
        text: a document.
        student: the spans of its tokens by the student's tokenizer, [tokens, 2]: see `spans_of`.
        base: those by the base model's tokenizer.
    """
    return np.searchsorted(possibly_read(text, base), surely_read(text, student), side="right") - 1


def surely_read(text: str, spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many characters of a text each token and those before it have read whole, at least: int64 [tokens]."""
    return np.minimum(spans[:, 1], _later_starts(text, spans))


def possibly_read(text: str, spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many characters of a text each token and those before it have read a part of, at most: int64 [tokens].

    They ascend. White space between a token and the next one is no part of the first.
    """
    characters = np.frombuffer(text.encode("utf-32-le"), "<u4")
    next_space = _next(np.isin(characters, WHITE_SPACE))
    next_base = _next(np.isin(characters, COMBINING, invert=True))
    ends = np.maximum.accumulate(spans[:, 1])
    ends = np.maximum(ends, np.minimum(next_space[ends], _later_starts(text, spans)))
    return next_base[np.maximum.accumulate(ends)]


def _later_starts(text: str, spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the first of the tokens after each one begins: int64 [tokens]."""
    starts = np.append(spans[1:, 0], len(text))[: len(spans)]
    return np.minimum.accumulate(starts[::-1])[::-1]


def _next(wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each place and the end: the first wanted place at or after it, or the end: int64 [places + 1]."""
    places = np.where(np.append(wanted, True), np.arange(len(wanted) + 1), len(wanted))
    return np.minimum.accumulate(places[::-1])[::-1]
