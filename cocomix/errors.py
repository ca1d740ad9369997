"""The one exception that means "the user can fix this"."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong, where, and what is allowed."""


def suggestion(word: str, allowed: Iterable[str]) -> str:
    """`did you mean 'latents'?` when a near word is allowed, else the list of allowed words."""
    words = sorted(allowed)
    near = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(words)}"
