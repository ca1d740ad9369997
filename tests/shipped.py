"""The parameters as they ship."""

import re
from pathlib import Path
from typing import Any

import yaml

from cocomix.params import Params

SHIPPED = Path(__file__).parents[1] / "params.yaml"


def paper_form() -> str:
    """The content of params.yaml in the paper's form and without forms: tests change single values of it."""
    text = SHIPPED.read_text()
    for old, new in {
        "score: activation ": "score: gradient ",
        "methods: [ntp, predicted, cocomix] ": "methods: [ntp, cocomix] ",
        "mixing: add ": "mixing: interleave ",
        "tied_scale: 0.01": "tied_scale: 0.75",
        "teacher_forcing: 0.5": "teacher_forcing: 0.0",
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return re.sub(r"(?m)^  forms: .*\n    predicted: .*$", "  forms: {}", text)


def paper_values() -> dict[str, Any]:
    """The same as values."""
    values: dict[str, Any] = yaml.safe_load(paper_form())
    return values


def paper_params() -> Params:
    """The same as parameters."""
    return Params.model_validate(paper_values())
