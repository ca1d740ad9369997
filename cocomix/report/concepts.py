"""Concept predictions in the report: means over seeds, and example positions of real text."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from cocomix.explain.atlas import Atlas
from cocomix.plumbing.artifact import Artifact
from cocomix.report.documents import EVALUATIONS
from cocomix.report.facts import ConceptFacts


class ExampleConcept(NamedTuple):
    """A concept that is a label at a position, or predicted there."""

    number: int
    label: str
    """Its label in the atlas; empty: it has none."""
    agreed: bool
    """Whether it is both a label and predicted."""
    probability: float | None
    """Predicted probability; None for a label."""


class Example(NamedTuple):
    """A position of the validation text."""

    before: str
    token: str
    """The token at the position."""
    following: str
    """The text after it: the labels depend on it, but the model has not seen it."""
    labelled: list[ExampleConcept]
    predicted: list[ExampleConcept]
    """The most probable concepts."""


def mean_concepts(runs: Sequence[ConceptFacts]) -> ConceptFacts:
    """Each figure's mean over runs of one method."""
    return ConceptFacts.model_validate(_mean([run.model_dump() for run in runs]))


def read_examples(name: str, atlas: Atlas) -> list[Example]:
    """Read the example positions of the evaluation <name>, with tokens and concepts as text.

    Raises:
        UserError: when the evaluation or the atlas is missing or damaged.
    """
    rows = pq.read_table(Artifact(EVALUATIONS / name).file("examples.parquet")).to_pylist()

    def text(tokens: Sequence[int]) -> str:
        return "".join(atlas.student_texts[each] for each in tokens)

    examples = []
    for row in rows:
        labelled, predicted = row["labelled"], row["predicted"]
        both = set(labelled) & set(predicted)
        examples.append(
            Example(
                before=text(row["before"]),
                token=text([row["token"]]),
                following=text(row["following"]),
                labelled=[ExampleConcept(each, atlas.label(each), each in both, None) for each in labelled],
                predicted=[
                    ExampleConcept(each, atlas.label(each), each in both, probability)
                    for each, probability in zip(predicted, row["probabilities"], strict=True)
                ],
            )
        )
    return examples


def _mean(values: Sequence[Any]) -> Any:
    """Elementwise mean of JSON values of the same structure."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _mean([each[key] for each in values]) for key in first}
    if isinstance(first, list):
        return [_mean(each) for each in zip(*values, strict=True)]
    return None if first is None else fmean(values)
