"""Files of an evaluation: a row for each document of a text or a task, each concept, or each example."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.evaluation.concepts import ConceptTable
from cocomix.evaluation.downstream import TaskScore
from cocomix.evaluation.examples import Example
from cocomix.evaluation.language_model import DocumentLosses
from cocomix.evaluation.writing import Writing

DOCUMENTS: dict[str, pa.DataType] = {
    "corpus": pa.string(),
    "document": pa.int64(),
    "group": pa.string(),
    "tokens": pa.int64(),
    "bytes": pa.float64(),
    "loss": pa.float64(),
}
"""corpus: validation, test, or the name of an additional corpus; the other columns: see `DocumentLosses`."""

TASKS: dict[str, pa.DataType] = {
    "task": pa.string(),
    "document": pa.int64(),
    "correct": pa.float64(),
    "log_likelihood": pa.float64(),
    "margin": pa.float64(),
    "weight": pa.float64(),
}
"""task: its name; the other columns: see `DocumentScore`."""

CONCEPTS: dict[str, pa.DataType] = {
    "concept": pa.int64(),
    "predicted": pa.int64(),
    "labelled": pa.int64(),
    "right": pa.int64(),
    "mean_strength": pa.float64(),
    "compress_norm": pa.float64(),
}
"""concept: its index; the other columns: see `ConceptTable`."""


def write_documents(path: Path, corpora: Mapping[str, DocumentLosses]) -> int:
    """Write documents.parquet, corpus after corpus; return the number of rows."""
    tables = [
        pa.table({"corpus": [name] * len(losses.document), **asdict(losses)}, schema=pa.schema(DOCUMENTS))
        for name, losses in corpora.items()
    ]
    return _write(path, pa.concat_tables(tables))


def write_tasks(path: Path, scores: Sequence[TaskScore]) -> int:
    """Write tasks.parquet, task after task; return the number of rows."""
    rows = [{"task": score.task} | each._asdict() for score in scores for each in score.documents]
    return _write(path, pa.Table.from_pylist(rows, pa.schema(TASKS)))


def write_concepts(path: Path, concepts: ConceptTable) -> int:
    """Write concepts.parquet; return the number of rows."""
    return _write(
        path, pa.table({"concept": range(len(concepts.predicted)), **asdict(concepts)}, schema=pa.schema(CONCEPTS))
    )


def write_examples(path: Path, examples: Sequence[Example]) -> int:
    """Write examples.parquet, with the columns of `Example`; return the number of rows."""
    return _write(path, pa.Table.from_pylist([each._asdict() for each in examples]))


def write_writings(path: Path, writings: Sequence[Writing]) -> int:
    """Write writings.parquet, with the columns of `Writing`; return the number of rows."""
    return _write(path, pa.Table.from_pylist([each._asdict() for each in writings]))


def _write(path: Path, table: pa.Table) -> int:
    pq.write_table(table, path, compression="zstd")
    return len(table)
