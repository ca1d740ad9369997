"""The parameters as they ship."""

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cocomix.params import Params
from cocomix.plumbing.checked import mapping, read_yaml
from flows.preset import with_values

SHIPPED = Path(__file__).parents[1] / "params.yaml"


@cache
def paper_form() -> str:
    """The content of params.yaml in the paper's form and without forms: tests change single values of it."""
    presets = SHIPPED.parent / "presets"
    default, paper = presets / "default.yaml", presets / "paper-form.yaml"
    text = with_values(default.read_bytes(), [YAML().load(paper)], str(paper)).decode()
    return re.sub(r"(?m)^  forms: .*\n(    .*\n)+", "  forms: {}\n", text)


def paper_values() -> dict[str, Any]:
    """The same as values, to be changed."""
    return copy.deepcopy(_paper_values())


@cache
def _paper_values() -> dict[str, Any]:
    return mapping(paper_form().encode(), "params.yaml")


def shipped_values() -> dict[str, Any]:
    """The shipped values, to be changed."""
    return copy.deepcopy(_shipped_values())


@cache
def _shipped_values() -> dict[str, Any]:
    return read_yaml(SHIPPED)


def paper_params() -> Params:
    """The same as parameters."""
    return Params.model_validate(paper_values())
