"""The field of a record that holds its text: `text`, or `meta.text` for one in another."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cocomix.plumbing.errors import suggestion

_SHOWN, _NAME_CHARACTERS, _DEPTH = 20, 80, 4
"""Of a record's fields, in an error."""


def field_of(record: Mapping[str, Any], name: str) -> Any:
    """What a field holds; nothing, where the one around it holds nothing.

    Raises:
        KeyError: when it is not there.
    """
    if name in record:
        return record[name]
    outer, dot, rest = name.partition(".")
    while dot:
        if isinstance(inside := record.get(outer), Mapping):
            return field_of(inside, rest)
        if outer in record and inside is None:
            return None
        more, dot, rest = rest.partition(".")
        outer = f"{outer}.{more}"
    raise KeyError(name)


def names_of(record: Mapping[str, Any], around: str = "") -> Iterator[str]:
    """The names of all fields; those in another follow its name and a dot."""
    for name, value in record.items():
        if isinstance(value, Mapping) and value and around.count(".") < _DEPTH:
            yield from names_of(value, f"{around}{name}.")
        else:
            yield f"{around}{name}"


def unknown(name: str, names: Iterable[str]) -> str:
    """What to say of a field that is not there."""
    known = sorted(each for each in names if len(each) <= _NAME_CHARACTERS)
    found = suggestion(name, known)
    if found.startswith("did you mean") or len(known) <= _SHOWN:
        return found
    return f"{suggestion(name, known[:_SHOWN])}, ..."
