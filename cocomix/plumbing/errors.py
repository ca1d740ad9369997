"""Exceptions of which the user sees one line: errors that the user can fix, and the death of a worker process."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong, where, and what is allowed.

    It may quote any text: unprintable characters are escaped, such as `\\n`.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(each if each.isprintable() else repr(each)[1:-1] for each in message))


class WorkerDiedError(Exception):
    """A worker process has died, such as by the kernel's SIGKILL for lack of memory. The message is one line."""


def suggestion(word: str, allowed: Iterable[str]) -> str:
    """`did you mean 'latents'?` if an allowed word is similar, else the list of allowed words."""
    words = sorted(allowed)
    near = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(words)}"


def install(extra: str) -> str:
    """The command that installs an extra of the project: it works in any shell, and the project stays editable."""
    return f'python -m pip install -c constraints.txt -e ".[{extra}]"'
