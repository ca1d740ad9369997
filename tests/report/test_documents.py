from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cocomix.evaluation.language_model import DocumentLosses
from cocomix.evaluation.tables import write_documents
from cocomix.plumbing.artifact import Artifact, Work
from cocomix.report.documents import Documents, difference, read_corpora

PACKAGES, TRIALS, GAIN = 30, 100, 0.03


def written(name: str, corpora: dict[str, DocumentLosses]) -> dict[str, Documents]:
    """What the report reads of an evaluation."""
    with Work(f"evaluate@{name}", Path("artifacts/evaluations") / name, {}, {}) as work:
        with work.write("documents.parquet") as pending:
            write_documents(pending.path, corpora)
        work.finish({})
        work.publish()
    return read_corpora(Artifact(Path("artifacts/evaluations") / name))


def losses(package: NDArray[np.int64], tokens: NDArray[np.int64], a_token: NDArray[np.float64]) -> DocumentLosses:
    groups = [f"package {each}" for each in package]
    return DocumentLosses(
        [*range(len(tokens))], groups, tokens.tolist(), [1.0] * len(tokens), (a_token * tokens).tolist()
    )


def test_documents_are_summed_by_group(folder: Path) -> None:
    found = written("ntp-0", {"test": losses(np.array([1, 0, 1]), np.array([10, 20, 30]), np.array([2.0, 3.0, 4.0]))})
    documents = found["test"]
    assert documents.groups.tolist() == ["package 0", "package 1"]
    assert documents.weights.tolist() == [20, 40]
    assert documents.sums.tolist() == [60, 140]


def test_the_interval_holds_the_truth_where_documents_of_a_package_are_alike(folder: Path) -> None:
    ours, theirs = {}, {}
    for trial in range(TRIALS):
        generator = np.random.default_rng(trial)
        package = np.repeat(np.arange(PACKAGES), 10)
        tokens = generator.integers(20, 400, len(package))
        difficulty = generator.normal(4, 0.7, len(package))
        gain = GAIN + generator.normal(0, 0.1, PACKAGES)[package] + generator.normal(0, 0.05, len(package))
        theirs[str(trial)] = losses(package, tokens, difficulty)
        ours[str(trial)] = losses(package, tokens, difficulty - gain)
    ours_read, theirs_read = written("cocomix-0", ours), written("ntp-0", theirs)
    held = 0
    for trial in ours:
        found = difference([ours_read[trial]], [theirs_read[trial]], trial)
        assert found is not None
        held += found.low <= -GAIN <= found.high
    assert held >= 88  # of 95 expected, and of 54 with each document as a group of its own
