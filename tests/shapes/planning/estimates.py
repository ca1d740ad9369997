"""Needs with other parameters than the shipped ones."""

from collections.abc import Mapping
from typing import Any

from cocomix.params import Params
from cocomix.plumbing.checked import parse
from cocomix.shapes.planning.corpus import CorpusSize
from cocomix.shapes.planning.needs import StageNeeds
from cocomix.shapes.planning.stages import stage_needs
from tests.shipped import paper_values

PARAMS = paper_values()
TEXT = CorpusSize(
    {"train": 4e6, "validation": 1e6, "test": 1e6}, {"train": 1e6, "validation": 2.5e5, "test": 2.5e5}, 4096
)
OWN = {"source": "pretrained", "pretrained": "x", "tokenizer": "own"}
"""Of a base model with its own tokenizer."""


def params(**changes: Mapping[str, Any]) -> Params:
    """The shipped parameters with other ones, by section."""
    return parse(Params, PARAMS | {name: PARAMS[name] | dict(values) for name, values in changes.items()}, "test")


def needs(text: CorpusSize = TEXT, **changes: Mapping[str, Any]) -> dict[str, StageNeeds]:
    """The needs of each stage with them."""
    return stage_needs(params(**changes), text)
