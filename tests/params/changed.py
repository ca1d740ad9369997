"""Parameters with other values than the shipped ones."""

from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from cocomix.params import Params, load
from cocomix.plumbing.checked import parse
from cocomix.plumbing.errors import UserError
from tests.shipped import paper_form, paper_values


def refusal(tmp_path: Path, old: str, new: str) -> str:
    """The message of loading params.yaml with `old` replaced, after the file's name."""
    text = paper_form()
    assert text.count(old) >= 1, old
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path)).removeprefix(": ")


def formed(methods: list[str], forms: dict[str, Any], **more: Any) -> Params:
    """The shipped parameters with forms."""
    content = paper_values()
    content["pretrain"] |= {"methods": methods, "forms": forms}
    return parse(Params, content | more, "params.yaml")


def leaves(model: type[BaseModel], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys of all values, of named sections one."""
    found = []
    for name, field in model.model_fields.items():
        inner = get_args(field.annotation)[1] if get_origin(field.annotation) is dict else field.annotation
        named = ("named",) if inner is not field.annotation else ()
        section = isinstance(inner, type) and issubclass(inner, BaseModel)
        found += leaves(inner, (*before, name, *named)) if section else [(*before, name)]
    return found
