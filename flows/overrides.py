"""Parameters given for a run: checked as params.yaml is, and written there."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from cocomix.params import FILE, Params
from cocomix.plumbing.artifact import write_atomically
from cocomix.plumbing.errors import UserError
from flows.preset import merge, sections, with_values


def schema() -> JsonSchemaValue:
    """The JSON schema of any part of params.yaml, as Prefect's form and server want it.

    The title of a field is its key, `sae.k`. Nothing has a default, which the form would fill in: what is not given is
    no override. Of keys with dots, which the form does not show, the values are left open.
    """
    whole = Params.model_json_schema()
    definitions = whole.pop("$defs")

    def part(of: Any, key: str) -> Any:
        if isinstance(of, list):
            return [part(each, key) for each in of]
        if not isinstance(of, dict):
            return of
        if "$ref" in of:  # written out, as only a whole schema can hold definitions
            of = definitions[of["$ref"].rpartition("/")[2]] | of
        left_out = {"$ref", "default", "required", "properties"}
        found = {name: part(inner, key) for name, inner in of.items() if name not in left_out}
        if "title" in of:
            found["title"] = key
        if "properties" in of:  # in this order also where the server's database, PostgreSQL, keeps none
            found["properties"] = {
                name: part(inner, f"{key}.{name}".removeprefix(".")) | {"position": position}
                for position, (name, inner) in enumerate(of["properties"].items())
            }
        if of.get("type") == "boolean":  # a list to choose from: the form's switch may send false untouched
            del found["type"]
            found["enum"] = [True, False]
        return found

    names = {"pattern": rf"^({'|'.join(Params.model_fields)})(\..+)?$"}
    return {"type": "object", "properties": part(whole, "")["properties"], "propertyNames": names}


Overrides = Annotated[dict[str, Any], WithJsonSchema(schema())]
"""Of parameters: by key, `{"sae.k": 16}`, or nested as in params.yaml."""


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


def nested(values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The same values with dots in keys made sections: `{"sae.k": 16}` is `{"sae": {"k": 16}}`.

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
    """A value under its key with dots, as sections: `sae.k`, 16 is `{"sae": {"k": 16}}`."""
    content = value
    for part in reversed(key.split(".")):
        content = {part: content}
    return content


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values by keys with dots: `{"sae": {"k": 16}}` is `{"sae.k": 16}`. Empty sections are left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": each for inner, each in flat(value).items()}
        else:
            found[key] = value
    return found
