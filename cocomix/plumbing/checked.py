"""Validate the content of files against a typed model; a violation raises a `UserError` of one line.

The message names the file, the key, the value, and what is allowed; for an unknown key, the nearest one.
"""

import json
import re
import stat
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cocomix.plumbing.dialect import load_yaml
from cocomix.plumbing.errors import UserError, suggestion


def merge(into: MutableMapping[str, Any], values: Mapping[str, Any]) -> None:
    """Set values in nested mappings, in place."""
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), MutableMapping):
            merge(into[key], value)
        else:
            into[key] = value


def whole_number(text: str) -> int:
    """Parse an integer in ASCII digits; `int` also accepts digits of other scripts, underscores and blanks.

    Raises:
        ValueError: when `text` is no such number.
    """
    if not re.fullmatch("[-+]?[0-9]{1,30}", text):
        raise ValueError
    return int(text)


def port_number(text: str) -> int:
    """Parse a port number; 0 means any free port.

    Raises:
        ValueError: when `text` is no port number.
    """
    if not 0 <= (port := whole_number(text)) < 2**16:
        raise ValueError
    return port


def read_file(path: Path) -> bytes:
    """Read a file that a user names; it must be a regular file, since reading a pipe or a device may never end.

    Raises:
        UserError: when it is missing or cannot be read.
    """
    try:
        if not (path.is_dir() or stat.S_ISREG(path.stat().st_mode)):
            raise UserError(f"{path}: no regular file")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a null character
        raise UserError(f"{path}: cannot be read: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: when it is missing, is not YAML as `cocomix.plumbing.dialect` defines it, or holds no mapping.
    """
    return mapping(read_file(path), str(path))


def mapping(content: bytes, source: str) -> dict[str, Any]:
    """Parse the content of a YAML file that holds a mapping.

    Args:
        source: the file, for the error.

    Raises:
        UserError: when it is not YAML as `cocomix.plumbing.dialect` defines it, or holds no mapping.
    """
    found = load_yaml(content, source)
    if not isinstance(found, dict):
        what = "is empty" if found is None else f"holds a {type(found).__name__}"
        raise UserError(f"{source}: {what}; it must hold sections of 'key: value'")
    return found


def read_json(path: Path, advice: str) -> Any:
    """Read a JSON file.

    Args:
        advice: what to do about an invalid file, for the error.

    Raises:
        UserError: when it is not valid JSON.
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
    """Validate `content` as a `model`.

    Args:
        source: the file, for the error.
        where: the place that each key was read from, where it is not `source`.

    Raises:
        UserError: the first violation, in one line.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(_explain(error, model, source, where or {})) from None


def _explain(error: ValidationError, model: type[BaseModel], source: str, where: Mapping[str, str]) -> str:
    errors = error.errors(include_url=False)
    # A misspelt key also causes a `missing` error; the unknown key says more.
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
            return f"{place}: must be a section of 'key: value', not {_short(first['input'])}"
    # A value that matches no type of a union has an error for each type.
    messages = [
        each["msg"].removeprefix("Value error, ") for each in errors if _locate(model, each["loc"])[0] == location
    ]
    message = " or ".join([messages[0], *(each.removeprefix("Input should be ") for each in messages[1:])])
    shown = "" if isinstance(first["input"], (dict, BaseModel)) else f"{_short(first['input'])}: "
    return f"{place}: {shown}{message[0].lower()}{message[1:]}"


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def _locate(model: type[BaseModel], path: tuple[int | str, ...]) -> tuple[list[int | str], list[str]]:
    """Pydantic's error path without the union types that it tried, and the keys allowed at its end."""
    location: list[int | str] = []
    annotation: object = model
    for part in path:
        inside = _section(annotation)
        named = get_origin(annotation) is dict
        if part == "[key]":  # the error is about the key before it
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
