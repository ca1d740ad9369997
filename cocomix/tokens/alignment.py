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

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from unicodedata import combining, normalize

import numpy as np
from numpy.typing import NDArray

from cocomix.corpus.splits import Split
from cocomix.plumbing.artifact import Work
from cocomix.plumbing.errors import UserError
from cocomix.plumbing.runtime import runtime
from cocomix.tokens.encoding import spans_of
from cocomix.tokens.pack import RowGroup, count_tokens, in_row_groups, opened, save, write_rows
from cocomix.tokens.windows import Tokens

WHITE_SPACE = np.array([each for each in range(0x3001) if chr(each).isspace()], np.uint32)


def write_places(
    work: Work, texts: Mapping[Split, Path], students: Tokens, shards: Mapping[Split, Sequence[Path]], context: int
) -> None:
    """Write `<split>.places.npy`, as `cocomix.tokens.base_tokens.BaseTokens` reads it, for each of some splits.

    The processes share the row groups, and the first one writes the files.

    Args:
        texts: Parquet files with a column `text`, from which both models' tokens were made.
        shards: the ids of the base model's tokens, a file for each row group: see `encode`.
        context: tokens of the base model's windows.

    Raises:
        UserError: when the students' tokens are not those of the texts.
    """
    tokenizers = students.artifact.file("tokenizer/tokenizer.json"), work.files / "tokenizer/tokenizer.json"
    align = partial(_align_group, student=tokenizers[0], base=tokenizers[1])
    found = in_row_groups(texts, work.scratch / "places", align, f"{work.stage}: alignment")
    if runtime().rank:
        return
    for split, places in found.items():
        if count_tokens(places) != students.ends(split)[-1]:
            raise UserError(f"{students.artifact.path}: its tokenizer makes other tokens now; run tokenize again")
        with work.write(f"{split}.places.npy") as pending:
            pending.rows = len(students.windows(split))
            in_windows = count_tokens(shards[split]) // context * context
            joined = _joined(places, shards[split], in_windows)
            write_rows(joined, pending.rows, students.context, pending.path)


def _align_group(group: RowGroup, student: Path, base: Path) -> None:
    """Write the places for the student's ids of a row group: its base tokens are counted from 0."""
    parts, first = [], 0
    for batch in group.batches():
        spans = (spans_of(opened(each), batch, group.described) for each in (student, base))
        for text, *pair in zip(batch, *spans, strict=True):
            places = np.append(aligned(text, *pair), len(pair[1]))  # the ends of the document are aligned
            parts.append(np.where(places < 0, -1, first + places))
            first += len(pair[1]) + 1
    save(group.shard, np.concatenate(parts))


def _joined(places: Sequence[Path], shards: Sequence[Path], in_windows: int) -> Iterator[NDArray[np.signedinteger]]:
    """The places of each shard, in the whole split; -1 beyond its last whole window."""
    first, dtype = 0, np.int32 if in_windows < 2**31 else np.int64
    for path, ids in zip(places, shards, strict=True):
        found = np.load(path)
        found = np.where(found < 0, -1, found + first)
        yield np.where(found < in_windows, found, -1).astype(dtype)
        first += np.load(ids, mmap_mode="r").size


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
    next_base = _next(np.isin(characters, combining_characters(), invert=True))
    ends = np.maximum.accumulate(spans[:, 1])
    ends = np.maximum(ends, np.minimum(next_space[ends], _later_starts(text, spans)))
    return next_base[np.maximum.accumulate(ends)]


@cache
def combining_characters() -> NDArray[np.uint32]:
    """Code points that join what is before them, also after a normaliser alone (U+FF9E, a mark of half width).

    There are none beyond the range. Looking for them takes too long for an import.
    """
    return np.array([each for each in range(0x20000) if combining(normalize("NFKD", chr(each))[0])], np.uint32)


def _later_starts(text: str, spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the first of the tokens after each one begins: int64 [tokens]."""
    starts = np.append(spans[1:, 0], len(text))[: len(spans)]
    return np.minimum.accumulate(starts[::-1])[::-1]


def _next(wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each place and the end: the first wanted place at or after it, or the end: int64 [places + 1]."""
    places = np.where(np.append(wanted, True), np.arange(len(wanted) + 1), len(wanted))
    return np.minimum.accumulate(places[::-1])[::-1]
