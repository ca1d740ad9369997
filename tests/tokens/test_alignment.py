import sys
from collections.abc import Callable
from unicodedata import combining, normalize

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from cocomix.tokens.alignment import WHITE_SPACE, aligned, combining_characters, surely_read
from cocomix.tokens.encoding import ids_of, plain, spans_of
from cocomix.tokens.tokenizer import END_OF_DOCUMENT, train_tokenizer

TRAINED_ON = [
    "The function returns a list of all 1234 files, and doesn't stop.",
    "caf\u00e9 cafe\u0301 na\u00efve \ufb01ne \u2167 \uff11\uff12\uff13 \u00bd \U0001f600\U0001f468\u200d\U0001f469",
    "\u654f\u6377\u7684\u68d5\u8272\u72d0\u72f8 \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
]
ODD = (
    "aeA \u00e9\u0301\u0328\u0323\u0130\ufb01\u2167\uff11\u00bd\U0001f600\u200d\u654f\ud55c"
    "\u1112\u1161\u11ab\t\n\u00a0\u3000\0<|>1"
)
"""Characters that tokenizers cut, compose, decompose, reorder, lower or leave out."""


def byte_level() -> Tokenizer:
    return train_tokenizer(TRAINED_ON, 330)


def byte_level_with_prefix() -> Tokenizer:
    tokenizer = train_tokenizer(TRAINED_ON, 300)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[SEP]"]
    tokenizer.train_from_iterator(
        TRAINED_ON, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    one_space = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), one_space])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    return tokenizer


def unigram_with_bytes() -> Tokenizer:
    """A run of unknown characters becomes bytes, each of which has the whole run as its span."""
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), ("\u2581", -3.0), ("\u2581a", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def bpe_with_bytes() -> Tokenizer:
    """As Llama's."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": 1 + byte for byte in range(256)} | {"\u2581": 257, "a": 258}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    marked = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence(marked)
    return tokenizer


def characters(normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """One token for each character after the normaliser."""
    every = {chr(each): number for number, each in enumerate([*range(0x3100), *range(0xAC00, 0xD7A4), *map(ord, ODD)])}
    tokenizer = Tokenizer(models.WordLevel(every, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if normalizer:
        tokenizer.normalizer = normalizer
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    each.__name__: each
    for each in (
        byte_level,
        byte_level_with_prefix,
        word_piece,
        unigram,
        unigram_with_bytes,
        bpe_with_bytes,
        characters,
    )
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {name: plain(make()) for name, make in KINDS.items()}


def spans(tokenizer: Tokenizer, text: str) -> NDArray[np.int64]:
    return spans_of(tokenizer, [text], "the text")[0]


texts = st.text(st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"])), max_size=20)
COMPOSING = ("NFC", "NFKC", "NFD", "NFKD", "Lowercase")


@pytest.fixture(scope="module")
def normalising() -> dict[str, Tokenizer]:
    return {name: plain(characters(getattr(normalizers, name)())) for name in COMPOSING}


@pytest.mark.parametrize("name", COMPOSING)
@given(text=texts)
@example("a\u0301\u0328b")  # NFC takes the second mark to the letter, past the first one
@example("\uff76\uff9ex")  # NFKC makes one letter of a letter and a mark that is no combining character
@example("\u1112\u1161\u11abx")
@settings(max_examples=300)
def test_what_the_base_model_has_read_follows_from_what_the_student_has_read(
    normalising: dict[str, Tokenizer], tokenizers: dict[str, Tokenizer], name: str, text: str
) -> None:
    student, base = spans(tokenizers["byte_level"], text), spans(normalising[name], text)
    whole = ids_of(normalising[name], [text], "")[0]
    for token, until in zip(aligned(text, student, base).tolist(), surely_read(text, student).tolist(), strict=True):
        assert ids_of(normalising[name], [text[:until]], "")[0][: token + 1] == whole[: token + 1]


def naive(text: str, student: NDArray[np.int64], base: NDArray[np.int64]) -> list[int]:
    """`aligned`, pair by pair, in bytes."""
    before = [len(text[:place].encode()) for place in range(len(text) + 1)]

    def seen(token: int) -> int:
        """The bytes of the characters that the base model may have read a part of."""
        until = max(end for _, end in base[: token + 1].tolist())
        later = min((start for start, _ in base[token + 1 :].tolist()), default=len(text))
        while until < later and not text[until].isspace():
            until += 1
        return until

    found = []
    for token, (_, end) in enumerate(student.tolist()):
        read = min([end, *(start for start, _ in student[token + 1 :].tolist())])
        no_later = [-1]
        for other in range(len(base)):
            until = max(seen(each) for each in range(other + 1))
            while until < len(text) and combining(normalize("NFKD", text[until])[0]):
                until += 1
            if before[until] <= before[read]:
                no_later.append(other)
        found.append(no_later[-1])
    return found


@pytest.mark.parametrize("student", KINDS)
@pytest.mark.parametrize("base", KINDS)
@given(text=texts)
@settings(max_examples=15)
def test_each_pair_of_tokenizers_is_aligned_as_pair_by_pair(
    tokenizers: dict[str, Tokenizer], student: str, base: str, text: str
) -> None:
    pair = spans(tokenizers[student], text), spans(tokenizers[base], text)
    assert aligned(text, *pair).tolist() == naive(text, *pair)


def test_white_space_is_no_part_of_the_word_before_it(tokenizers: dict[str, Tokenizer]) -> None:
    text = "all  files\n"
    base, student = spans(tokenizers["word_piece"], text), spans(tokenizers["characters"], text)
    words = [text[: base[token, 1]] if token >= 0 else "" for token in aligned(text, student, base)]
    assert words[2:5] == ["all"] * 3
    assert words[-2:] == ["all  files"] * 2


def test_a_token_is_aligned_with_itself_but_within_a_character_with_what_ends_before_it(
    tokenizers: dict[str, Tokenizer],
) -> None:
    text = "ab \U0001f600!"
    both = spans(tokenizers["byte_level"], text)
    assert both.tolist() == [[0, 1], [1, 2], [2, 4], [3, 4], [3, 4], [4, 5]], (
        "one token: a space and a part of a letter"
    )
    assert aligned(text, both, both).tolist() == [0, 1, 1, 1, 4, 5]


def test_an_empty_text_has_no_tokens_to_align(tokenizers: dict[str, Tokenizer]) -> None:
    nothing, something = (spans(tokenizers["byte_level"], text) for text in ("", "a"))
    assert aligned("", nothing, nothing).tolist() == []
    assert aligned("a", something, nothing).tolist() == [-1]


def test_the_kinds_of_characters_are_complete() -> None:
    every = [chr(each) for each in range(sys.maxunicode + 1)]
    assert [ord(each) for each in every if each.isspace()] == WHITE_SPACE.tolist()
    assert [ord(each) for each in every if combining(normalize("NFKD", each)[0])] == combining_characters().tolist()


@pytest.mark.parametrize("name", KINDS)
def test_spans_are_of_the_tokens_that_documents_are_packed_with(tokenizers: dict[str, Tokenizer], name: str) -> None:
    lines = [*TRAINED_ON, f"no end: {END_OF_DOCUMENT} [SEP] </s>", ""]
    found = spans_of(tokenizers[name], lines, "")
    assert list(map(len, found)) == list(map(len, ids_of(tokenizers[name], lines, "")))
    assert found[-1].shape == (0, 2)
