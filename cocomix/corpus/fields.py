"""Find the field of a record that holds its text: `text`, or `meta.text` for a nested field."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cocomix.plumbing.errors import suggestion

_SHOWN, _NAME_CHARACTERS, _DEPTH = 20, 80, 4
"""Limits of the field names in an error: how many, how long, how deeply nested."""


def field_of(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field; None where an outer field is None.

    Raises:
        KeyError: when the field does not exist.
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
    """Yield the names of all fields; the name of a nested field begins with the outer name and a dot."""
    for name, value in record.items():
        if isinstance(value, Mapping) and value and around.count(".") < _DEPTH:
            yield from names_of(value, f"{around}{name}.")
        else:
            yield f"{around}{name}"


def unknown(name: str, names: Iterable[str]) -> str:
    """Error text for a field that does not exist: the most similar or all names."""
    known = sorted(each for each in names if len(each) <= _NAME_CHARACTERS)
    found = suggestion(name, known)
    if found.startswith("did you mean") or len(known) <= _SHOWN:
        return found
    return f"{suggestion(name, known[:_SHOWN])}, ..."
