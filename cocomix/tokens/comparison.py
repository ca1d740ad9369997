"""Compare two tokenizers: a model trained with one cannot read the ids of another."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cocomix.plumbing.errors import UserError
from cocomix.plumbing.progress import say
from cocomix.pretrained import load_tokenizer
from cocomix.tokens.spaced import spaced
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


def check_vocabulary(key: str, name: str, size: int, tokens: Tokens, *, beside: bool = False) -> None:
    """Check that a model has an embedding for each of the tokens.

    Args:
        key: the parameter that holds `name`.
        name: hub id or folder of the model.
        size: entries of the model's vocabulary.
        beside: whether the tokens are those of the tokenizer beside the model.

    Raises:
        UserError: in one line, when it has fewer.
    """
    if size < tokens.vocab_size:
        advice = "the tokenizer beside it is not its own" if beside else "use its tokenizer (tokenize.pretrained)"
        raise UserError(f"{key}: {name!r} has a vocabulary of {size}; the tokens need {tokens.vocab_size}: {advice}")


def check_tokenizer(key: str, name: str, revision: str | None, tokens: Tokens) -> None:
    """Check that the tokenizer of a model, if it has one, made the tokens.

    A model without a tokenizer is taken, at the user's word, if that of the tokens was pretrained too.

    Args:
        key: the parameter that holds `name`, such as base.pretrained; its revision is beside it.
        name: hub id or folder of the model.

    Raises:
        UserError: in one line, which says what to set.
    """
    made, its_revision = tokens.artifact.manifest.params, f"{key.rpartition('.')[0]}.revision"
    try:
        theirs = load_tokenizer(key, name, revision)
    except UserError as error:
        if made.get("source") == "pretrained":
            ours = made["pretrained"]
            say(f"{error}; that of tokenize.pretrained ({ours}) is taken to be its own: nothing can be compared")
            return
        raise UserError(
            f"{error}; a tokenizer that was trained here (tokenize.source: train) is not that of this model: set "
            "tokenize.source: pretrained, and tokenize.pretrained to the model's own"
        ) from None
    if found := difference(tokens, theirs):
        own = "base.tokenizer: own, or " if key == "base.pretrained" else ""
        advice = (
            f"set {own}tokenize.source: pretrained, tokenize.pretrained: {name}, and tokenize.revision to "
            f"{its_revision}"
        )
        raise UserError(f"{key}: {name!r} has another tokenizer than the tokens: {found}; {advice}")


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
    for number in spaced(len(windows), _WINDOWS):
        yield tokenizer.decode(windows[number], clean_up_tokenization_spaces=False)
