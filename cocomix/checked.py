"""Content of files, checked against a typed model: what is wrong is a `UserError` of one line.

It names the file, the key, the value, and what is allowed; for an unknown key, the nearest one.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from cocomix.errors import UserError, suggestion


class _Loader(yaml.SafeLoader):
    """PyYAML with two repairs: `2e-3` is a number, as it is for DVC (YAML 1.2), and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: when it is missing, is no YAML, gives a key twice, or holds something else.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
    except (ValueError, RecursionError) as error:  # a date that is none, a number of too many digits, endless nesting
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        what = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise UserError(f"{path}: {what}; it must hold sections of 'key: value'")
    return content


def read_json(path: Path, advice: str) -> Any:
    """A JSON file.

    Args:
        advice: what to do about one that is not valid, for the error.

    Raises:
        UserError: when it is no JSON.
        FileNotFoundError: when it is missing.
    """
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON; {advice}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; {advice}") from None


Model = TypeVar("Model", bound=BaseModel)


def parse(
    model: type[Model], content: Mapping[str, object], source: str, where: Mapping[str, str] | None = None
) -> Model:
    """`content` as `model`.

    Args:
        source: the file, for the error.
        where: the place that each key was read from, when it is not `source`.

    Raises:
        UserError: the first thing that is wrong, in one line.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(_explain(error, model, source, where or {})) from None


def _explain(error: ValidationError, model: type[BaseModel], source: str, where: Mapping[str, str]) -> str:
    errors = error.errors(include_url=False)
    # A misspelt key is also a missing one: the former says more.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    location, fields = _locate(model, first["loc"])
    key = ".".join(map(str, location))
    place = where.get(key, f"{source}: {key}" if key else source)
    match first["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key; {suggestion(str(location[-1]), fields)}"
        case "missing":
            return f"{place}: missing; it must be given"
        case "model_type":
            return f"{place}: must be a section of 'key: value', not {first['input']!r}"
    # A value that fits no type of a union has an error for each.
    messages = [
        each["msg"].removeprefix("Value error, ") for each in errors if _locate(model, each["loc"])[0] == location
    ]
    message = " or ".join([messages[0], *(each.removeprefix("Input should be ") for each in messages[1:])])
    shown = "" if isinstance(first["input"], (dict, BaseModel)) else f"{first['input']!r}: "
    return f"{place}: {shown}{message[0].lower()}{message[1:]}"


def _locate(model: type[BaseModel], path: tuple[int | str, ...]) -> tuple[list[int | str], list[str]]:
    """Pydantic's path without the types it tried, and the keys allowed where it ends."""
    location: list[int | str] = []
    annotation: object = model
    for part in path:
        inside = _section(annotation)
        named = get_origin(annotation) is dict
        if part == "[key]":  # what is wrong is the key before it
            break
        if isinstance(part, int) or inside or named:
            location.append(part)
        if inside and part not in inside.model_fields:
            return location, list(inside.model_fields)
        annotation = get_args(annotation)[1] if named else inside.model_fields[str(part)].annotation if inside else None
    inside = _section(annotation)
    return location, list(inside.model_fields if inside else ())


def _section(annotation: object) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
