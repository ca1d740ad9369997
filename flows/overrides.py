"""Parameters given for a run: checked as params.yaml is, and written there."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

from cocomix.artifact import write_atomically
from cocomix.params import FILE
from flows.preset import merge, sections, with_values


def override(values: Mapping[str, Any]) -> None:
    """Set parameters in params.yaml, keeping its comments; all of them, or after an error none.

    Args:
        values: by key, `sae.k`, or nested as in params.yaml.

    Raises:
        UserError: when params.yaml cannot be read, or the result is not valid.
    """
    before = sections(FILE)
    after = with_values(before, [nested(values)], "overrides")
    if after != before:
        write_atomically(FILE, after)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with dots in keys made sections: `{"sae.k": 16}` is `{"sae": {"k": 16}}`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = nested(value) if isinstance(value, Mapping) else value
        merge(found, reduce(lambda content, part: {part: content}, reversed(str(key).split(".")), inner))
    return found
