"""What a model made of each document, of which an evaluation keeps tables: what two methods are paired by.

Documents of one package, or pieces of one book, are alike: what a method gains on one it gains on the others. So they
say less of other text than as many of different origin, and an interval has whole groups of them for its sample.
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
"""Of `cocomix.evaluation.downstream.DocumentScore`."""


class Documents(NamedTuple):
    """One model on the documents of a corpus or a task, summed by group, in the groups' order: arrays of one length."""

    groups: NDArray[Any]
    """See `cocomix.corpus.store.Document`; of a task, the documents' own numbers."""
    weights: NDArray[np.float64]
    """How much each counts: predicted tokens; words of a word perplexity; documents."""
    sums: NDArray[np.float64]
    """Cross-entropy in nats, right answers, .."""


def read_corpora(evaluation: Artifact) -> dict[str, Documents]:
    """Losses on the documents of each corpus."""
    table = pq.read_table(evaluation.file("documents.parquet"))
    return _by(table, "corpus", "group", table["tokens"].to_numpy().astype(np.float64), table["loss"].to_numpy())


def read_tasks(evaluation: Artifact) -> dict[TaskFigure, dict[str, Documents]]:
    """Each figure on the documents of the tasks that have it."""
    table = pq.read_table(evaluation.file("tasks.parquet"))
    found = {}
    for figure in get_args(TaskFigure):
        by_task = _by(table, "task", "document", table["weight"].to_numpy(), table[figure].to_numpy())
        found[figure] = {task: each for task, each in by_task.items() if not np.isnan(each.sums).any()}
    return found


def difference(runs: Sequence[Documents], others: Sequence[Documents], where: str) -> Interval | None:
    """The weighted mean of `runs` less that of `others`, which have the same seeds in the same order.

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
