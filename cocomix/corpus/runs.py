"""Runs of consecutive words, as hashes: near-duplicates and texts of benchmarks are found by them.

A word is a run of letters with their marks, digits and underscores, in lower case. In scripts that put no spaces
between words, each letter with its marks counts as a word. A longer word than `_LONGEST` counts as several. In a text
without words, each character counts as one.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import regex
from numpy.typing import NDArray

_LONGEST = 64
_UNSPACED = r"[[\w\p{M}]&&[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
"""A letter of Chinese, Japanese, Thai, Lao, Khmer or Burmese."""
_WORD, _NO_WORD = regex.compile(rf"[\w\p{{M}}]{{1,{_LONGEST}}}"), regex.compile(r"[^\w\p{M}]")
_MAYBE_UNSPACED = regex.compile("[\u0e00-\u1fff\u2e80-\U0010ffff]")
"""A character that may be one of those: most texts have none."""
_WORD_OR_LETTER = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|[[\w\p{{M}}]--{_UNSPACED}]{{1,{_LONGEST}}}")
_PIECE = 1 << 20
"""Characters of a long text whose words are in memory at a time: a word takes 60 bytes there."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that no word of a run is lost modulo 2^64."""


def word_hashes(text: str) -> NDArray[np.uint64]:
    """The hash of each word of a text, in order: uint64 [words]."""
    lower = text.lower()
    word = _WORD_OR_LETTER if _MAYBE_UNSPACED.search(lower) else _WORD  # which takes a third of the time
    found = np.concatenate([np.fromiter(map(_hash, word.findall(each)), np.uint64) for each in _pieces(lower)])
    return found if len(found) else np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64)


def _pieces(text: str) -> Iterator[str]:
    """Yield the text in pieces that end where no word does."""
    start = 0
    while gap := _NO_WORD.search(text, start + _PIECE):
        yield text[start : gap.start()]
        start = gap.start()
    yield text[start:]


def run_hashes(words: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """The hash of each run of `length` words: uint64 [words - length + 1], or none.

    The probability that two of N different runs have the same hash is about N^2 / 2^65.
    """
    if len(words) < length:
        return np.empty(0, np.uint64)
    return combined(np.lib.stride_tricks.sliding_window_view(words, length))


def combined(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One hash of all hashes along the last axis, in order: uint64 [...]."""
    found = np.zeros(hashes.shape[:-1], np.uint64)
    for each in range(hashes.shape[-1]):
        found *= _FACTOR
        found += hashes[..., each]
    return found


@lru_cache(1 << 16)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
