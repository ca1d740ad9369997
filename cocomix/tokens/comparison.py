"""Compare two tokenizers: a model trained with one cannot read the ids of another."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from cocomix.tokens.windows import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = (
    "The quick brown fox doesn't jump; it's 3.14159, 1,000,000 or 20240229 times the HTTPServer's naïve_variable2.",
    " leading,  double   triple and trailing spaces  ",
    "\ttabs\t\tand\nlines\n\n\nand\r\nWindows lines\u00a0and\u2003other spaces\u200b",
    "éè e\u0301 \ufb01 ½ \u2167 \uff21\uff22\uff23 ß \u0130i \u017f",
    "敏捷的棕色狐狸\uff0cひらがなカタカナ。한국어 การทดสอบ العربية עברית हिन्दी Ελληνικά Русский",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2603\ufe0f \U0001d54f",
    "if (a[i] != '\\n') { return x**2 + f(y, z) <= 0x1F; }  # TODO: <b>html</b> &amp; http://a.b/c?d=e#f",
    "0 00 000 0000 12345678901234567890 ½ ² १२३ 一二三",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ???!!!...---___===",
)
_WINDOWS = 64
"""Number of validation windows whose text is also compared."""


def difference(tokens: Tokens, theirs: "PreTrainedTokenizerBase") -> str | None:
    """Describe a text or token whose ids `theirs` and the tokenizer of `tokens` disagree on; None: they agree.

    `theirs` may have more tokens, as long as they change the ids of no compared text.
    """
    ours, known = tokens.tokenizer(), theirs.get_vocab()
    for token, number in sorted(ours.get_vocab().items(), key=lambda each: each[1]):
        if known.get(token) != number:
            return f"the token {token!r} is {number} here and {known.get(token, 'unknown')} there"
    if theirs.eos_token_id not in (None, ours.eos_token_id):
        return f"documents end with {ours.eos_token!r} here and {theirs.eos_token!r} there"
    for text in (*PROBES, *_spelt(ours), *_spelt(theirs), *_texts(tokens)):
        here, there = (_ids(each, text) for each in (ours, theirs))
        if here != there:
            at = next((at for at, pair in enumerate(zip(here, there, strict=False)) if pair[0] != pair[1]), 0)
            return f"{text[:40]!r}.. is {here[at : at + 4]}.. here and {there[at : at + 4]}.. there, from token {at}"
    return None


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The token ids of a text; empty where the tokenizer cannot encode it."""
    try:
        found = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    except Exception:  # the type depends on the library behind the tokenizer
        return []
    ids: list[int] = found["input_ids"]
    return ids


def _spelt(tokenizer: "PreTrainedTokenizerBase") -> Iterable[str]:
    """Texts that spell the added and special tokens."""
    return (f"a {token}{token} b" for token in {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens})


def _texts(tokens: Tokens) -> Iterable[str]:
    windows, tokenizer = tokens.windows("validation"), tokens.tokenizer()
    for number in np.linspace(0, len(windows) - 1, min(_WINDOWS, len(windows)), dtype=int):
        yield tokenizer.decode(windows[number], clean_up_tokenization_spaces=False)
