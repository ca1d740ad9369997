"""What the models make of concepts: means over the seeds, and some positions of real text."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from cocomix.explain.atlas import Atlas
from cocomix.plumbing.artifact import Artifact
from cocomix.report.documents import EVALUATIONS
from cocomix.report.facts import ConceptFacts


class ExampleConcept(NamedTuple):
    """A concept that is a label of a position, or predicted there."""

    number: int
    label: str
    """What the atlas calls it; empty: nothing."""
    agreed: bool
    """Labelled and predicted."""
    probability: float | None
    """That the model gives it; None: of a label."""


class Example(NamedTuple):
    """A position of the validation text."""

    before: str
    token: str
    """The one at the position."""
    following: str
    """What the labels are about, and the model has not seen."""
    labelled: list[ExampleConcept]
    predicted: list[ExampleConcept]
    """The most probable ones."""


def mean_concepts(runs: Sequence[ConceptFacts]) -> ConceptFacts:
    """Each figure's mean over runs of one method."""
    return ConceptFacts.model_validate(_mean([run.model_dump() for run in runs]))


def read_examples(name: str) -> list[Example]:
    """The positions that the evaluation <name> has kept, in words.

    Raises:
        UserError: when the evaluation or the atlas is not there or damaged.
    """
    rows = pq.read_table(Artifact(EVALUATIONS / name).file("examples.parquet")).to_pylist()
    atlas = Atlas()

    def text(tokens: Sequence[int]) -> str:
        return "".join(atlas.texts[each] for each in tokens)

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
    """Of JSON values that are alike: figure by figure."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _mean([each[key] for each in values]) for key in first}
    if isinstance(first, list):
        return [_mean(each) for each in zip(*values, strict=True)]
    return None if first is None else fmean(values)
