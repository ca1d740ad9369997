"""What the models make of concepts: means over the seeds, and some positions of real text."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import pyarrow.parquet as pq

from cocomix.artifact import Artifact
from cocomix.explain.atlas import Atlas
from cocomix.report.documents import EVALUATIONS
from cocomix.report.facts import ConceptFacts, MixingFacts


class Concept(NamedTuple):
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
    labelled: list[Concept]
    predicted: list[Concept]
    """The most probable ones."""


def mean_concepts(runs: Sequence[ConceptFacts]) -> ConceptFacts:
    """Each figure's mean over runs of one method."""

    def over(name: str) -> float:
        return fmean(getattr(run, name) for run in runs)

    mixings = [run.mixing for run in runs if run.mixing]
    return ConceptFacts(
        cross_entropy=over("cross_entropy"),
        recall_at_k=over("recall_at_k"),
        recall_at_labels=over("recall_at_labels"),
        never_predicted=over("never_predicted"),
        ignored=None if runs[0].ignored is None else over("ignored"),
        mixing=_mean_mixing(mixings) if mixings else None,
    )


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
                labelled=[Concept(each, atlas.label(each), each in both, None) for each in labelled],
                predicted=[
                    Concept(each, atlas.label(each), each in both, probability)
                    for each, probability in zip(predicted, row["probabilities"], strict=True)
                ],
            )
        )
    return examples


def _mean_mixing(runs: Sequence[MixingFacts]) -> MixingFacts:
    def over(name: str) -> float:
        return fmean(getattr(run, name) for run in runs)

    def over_each(name: str) -> list[float]:
        return [fmean(each) for each in zip(*(getattr(run, name) for run in runs), strict=True)]

    return MixingFacts(
        windows=runs[0].windows,
        as_it_is=over("as_it_is"),
        zeroed=over("zeroed"),
        shuffled=over("shuffled"),
        mean=over("mean"),
        told_by_uncertainty=over_each("told_by_uncertainty"),
        told_at_random=over_each("told_at_random"),
        told_others=over("told_others"),
    )
