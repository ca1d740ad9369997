"""What a model made of each document, of which an evaluation keeps tables: what two methods are paired by."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cocomix.artifact import Artifact
from cocomix.errors import UserError
from cocomix.report.statistics import Interval, paired_difference

EVALUATIONS = Path("artifacts/evaluations")


class Documents(NamedTuple):
    """One model on the documents of a corpus or a task, in the order of their numbers: arrays of one length."""

    numbers: NDArray[np.int64]
    weights: NDArray[np.float64]
    """How much each counts: predicted tokens; words of a word perplexity; 1."""
    sums: NDArray[np.float64]
    """Cross-entropy in nats, or 1 where the answer is right."""


def read_corpora(evaluation: Artifact) -> dict[str, Documents]:
    """Losses on the documents of each corpus."""
    table = pq.read_table(evaluation.file("documents.parquet"))
    return _by(table, "corpus", table["tokens"].to_numpy().astype(np.float64), table["loss"].to_numpy())


def read_tasks(evaluation: Artifact, perplexities: Collection[str]) -> dict[str, Documents]:
    """What decides each task's metric: right answers, and of `perplexities` the loss on the text.

    Tasks without either, such as those that generate, are left out.
    """
    table = pq.read_table(evaluation.file("tasks.parquet"))
    is_perplexity = np.isin(np.array(table["task"].to_pylist()), list(perplexities))
    correct, likelihood = (table[each].to_numpy() for each in ("correct", "log_likelihood"))
    found = _by(table, "task", table["weight"].to_numpy(), np.where(is_perplexity, -likelihood, correct))
    return {task: each for task, each in found.items() if not np.isnan(each.sums).any()}


def difference(runs: Sequence[Documents], others: Sequence[Documents], where: str) -> Interval | None:
    """The weighted mean of `runs` less that of `others`, which have the same seeds in the same order.

    Args:
        where: the corpus or task, for the error.

    Raises:
        UserError: when they were not measured on the same documents.
    """
    first = runs[0]
    for each in (*runs, *others):
        if not (np.array_equal(each.numbers, first.numbers) and np.array_equal(each.weights, first.weights)):
            raise UserError(f"{EVALUATIONS}: not all of the same documents of {where}; run the stage evaluate again")
    sums, other = (np.stack([each.sums for each in some]) for some in (runs, others))
    return paired_difference(sums, other, first.weights)


def _by(table: pa.Table, column: str, weights: NDArray[np.float64], sums: NDArray[np.float64]) -> dict[str, Documents]:
    names, numbers = np.array(table[column].to_pylist()), table["document"].to_numpy()
    found = {}
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        rows = rows[numbers[rows].argsort(kind="stable")]
        found[str(name)] = Documents(numbers[rows], weights[rows], sums[rows])
    return found
