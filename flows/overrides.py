"""Parameter overrides of a run: validate them like params.yaml, and write them there."""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from cocomix.params import FILE, Params
from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.checked import merge, read_yaml
from cocomix.plumbing.dialect import load_yaml
from cocomix.plumbing.errors import UserError
from flows.preset import content_of, sections, with_values


def schema() -> JsonSchemaValue:
    """The JSON schema of overrides, any part of params.yaml, in the form that Prefect's form and server need.

    A field's title is its key, `sae.k`, and its description ends with the value in params.yaml at that time. There are
    no defaults, because the form would fill them in, and only values that are given are overrides. Values of dotted
    keys, which the form does not show, are unconstrained.
    """
    whole, now = Params.model_json_schema(), current()
    definitions = whole.pop("$defs")

    def part(of: Any, key: str) -> Any:
        if isinstance(of, list):
            return [part(each, key) for each in of]
        if not isinstance(of, dict):
            return of
        if "$ref" in of:  # inlined, since only a whole schema can hold definitions
            of = definitions[of["$ref"].rpartition("/")[2]] | of
        left_out = {"$ref", "default", "required", "properties"}
        found = {name: part(inner, key) for name, inner in of.items() if name not in left_out}
        if "title" in of:
            found["title"] = key
        if key in now:
            value = json.dumps(now[key], ensure_ascii=False)
            found["description"] = f"{found.get('description', '')} When this form was made: {value}.".lstrip()
        if "properties" in of:  # `position` keeps the order: PostgreSQL, as the server's database, does not
            found["properties"] = {
                name: part(inner, f"{key}.{name}".removeprefix(".")) | {"position": position}
                for position, (name, inner) in enumerate(of["properties"].items())
            }
        if of.get("type") == "boolean":  # an enum, since the form's switch may send false untouched
            del found["type"]
            found["enum"] = [True, False]
        return found

    names = {"pattern": rf"^({'|'.join(Params.model_fields)})(\..+)?$"}
    return {"type": "object", "properties": part(whole, "")["properties"], "propertyNames": names}


def current() -> dict[str, Any]:
    """The values in params.yaml by dotted key; empty if it cannot be read, which the run itself then reports."""
    try:
        return flat(read_yaml(FILE))
    except UserError:
        return {}


def assignments(lines: Iterable[str]) -> dict[str, Any]:
    """Read lines such as `sae.k=16`, with values in YAML, into sections.

    Raises:
        UserError: when a line is none, or a key is given twice.
    """
    return nested(map(_assignment, lines))


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if key and equals:
        return key.strip(), load_yaml(value, text, lines=False)
    raise UserError(f"{text}: must be KEY=VALUE, such as sae.k=16, with the value in YAML")


def override(values: Mapping[str, Any], preset: str | None = None) -> None:
    """Set parameters in params.yaml, keeping its comments; after an error, none are set: see `overridden`."""
    write_atomically(FILE, overridden(values, preset))


def overridden(values: Mapping[str, Any], preset: str | None = None) -> bytes:
    """The content of params.yaml with other values of parameters, and its own comments.

    Args:
        values: by dotted key, `sae.k`, or nested as in params.yaml.
        preset: is applied before them.

    Raises:
        UserError: when params.yaml cannot be read, there is no such preset, or the result is not valid.
    """
    return with_values(content_of(preset) if preset else sections(FILE), [nested(values)], "overrides")


def nested(values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Convert dotted keys to sections: `{"sae.k": 16}` becomes `{"sae": {"k": 16}}`.

    Raises:
        UserError: when a key is given twice, as by `sae.k` and within `sae`.
    """
    found: dict[str, Any] = {}
    given = set[str]()
    for key, value in values.items() if isinstance(values, Mapping) else values:
        inner = under(str(key), nested(value) if isinstance(value, Mapping) else value)
        keys = set(flat(inner))
        if twice := given & keys:
            raise UserError(f"{min(twice)}: is given twice")
        given |= keys
        merge(found, inner)
    return found


def under(key: str, value: Any) -> dict[str, Any]:
    """Nest a value under its dotted key: `sae.k`, 16 becomes `{"sae": {"k": 16}}`."""
    content = value
    for part in reversed(key.split(".")):
        content = {part: content}
    return content


def leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert sections to dotted keys: `{"sae": {"k": 16}}` becomes `{"sae.k": 16}`. An empty section is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{key}.{inner}": each for inner, each in leaves(value).items()}
        else:
            found[key] = value
    return found


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert sections to dotted keys, as `leaves`, but drop empty sections."""
    return {key: value for key, value in leaves(values).items() if not isinstance(value, Mapping)}


Overrides = Annotated[dict[str, Any], WithJsonSchema(schema())]
"""Parameters to override: by dotted key, `{"sae.k": 16}`, or nested as in params.yaml."""
