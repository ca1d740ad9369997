"""The parameters as they ship."""

import re
from pathlib import Path
from typing import Any

import yaml

from cocomix.params import Params
from flows.preset import merged

SHIPPED = Path(__file__).parents[1] / "params.yaml"


def paper_form() -> str:
    """The content of params.yaml in the paper's form and without forms: tests change single values of it."""
    presets = SHIPPED.parent / "presets"
    text = merged(SHIPPED, presets / "default.yaml", presets / "paper-form.yaml").decode()
    return re.sub(r"(?m)^  forms: .*\n    predicted: .*$", "  forms: {}", text)


def paper_values() -> dict[str, Any]:
    """The same as values."""
    values: dict[str, Any] = yaml.safe_load(paper_form())
    return values


def paper_params() -> Params:
    """The same as parameters."""
    return Params.model_validate(paper_values())
