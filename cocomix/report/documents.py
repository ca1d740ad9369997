"""Per-document results of evaluations, by which two methods are paired.

Documents of one package, or pieces of one book, are correlated. They say less about other text than as many documents
of different origin, so the sample of an interval is the groups of documents.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError
from cocomix.statistics import Interval, paired_difference

EVALUATIONS = Path("artifacts/evaluations")


TaskFigure = Literal["correct", "log_likelihood", "margin"]
"""Fields of `cocomix.evaluation.downstream.DocumentScore`."""


class Documents(NamedTuple):
    """A model's results on a corpus or a task, summed by group and sorted by group: arrays of equal length."""

    groups: NDArray[Any]
    """See `cocomix.corpus.store.Document`; for a task, the documents' indices."""
    weights: NDArray[np.float64]
    """Weight of each group: predicted tokens, words (for a word perplexity), or documents."""
    sums: NDArray[np.float64]
    """Sum over each group: cross-entropy in nats, right answers, .."""


def read_corpora(evaluation: Artifact) -> dict[str, Documents]:
    """Read the losses on the documents of each corpus."""
    table = pq.read_table(evaluation.file("documents.parquet"))
    return _by(table, "corpus", "group", table["tokens"].to_numpy().astype(np.float64), table["loss"].to_numpy())


def read_tasks(evaluation: Artifact) -> dict[TaskFigure, dict[str, Documents]]:
    """Read each figure on the documents of the tasks that have it."""
    table = pq.read_table(evaluation.file("tasks.parquet"))
    found = {}
    for figure in get_args(TaskFigure):
        by_task = _by(table, "task", "document", table["weight"].to_numpy(), table[figure].to_numpy())
        found[figure] = {task: each for task, each in by_task.items() if not np.isnan(each.sums).any()}
    return found


def difference(runs: Sequence[Documents], others: Sequence[Documents], where: str) -> Interval | None:
    """The weighted mean of `runs` minus that of `others`, which have the same seeds in the same order.

    Args:
        where: the corpus or task, for the error.

    Raises:
        UserError: when they were not measured on the same documents.
    """
    first = runs[0]
    for each in (*runs, *others):
        if not (np.array_equal(each.groups, first.groups) and np.array_equal(each.weights, first.weights)):
            raise UserError(f"{EVALUATIONS}: not all of the same documents of {where}; run the stage evaluate again")
    sums, other = (np.stack([each.sums for each in some]) for some in (runs, others))
    return paired_difference(sums, other, first.weights)


def _by(
    table: pa.Table, column: str, group: str, weights: NDArray[np.float64], sums: NDArray[np.float64]
) -> dict[str, Documents]:
    names, groups = (np.array(table[each].to_pylist()) for each in (column, group))
    found = {}
    for name in np.unique(names):
        rows = names == name
        own, number = np.unique(groups[rows], return_inverse=True)
        by_group = (np.bincount(number, each[rows]).astype(np.float64) for each in (weights, sums))
        found[str(name)] = Documents(own, *by_group)
    return found
