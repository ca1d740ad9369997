"""What each model writes after the same beginnings of validation text."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow.parquet as pq

from cocomix.explain.atlas import Atlas
from cocomix.plumbing.artifact import Artifact
from cocomix.report.documents import EVALUATIONS


class Writings(NamedTuple):
    """A prompt and its continuations."""

    prompt: str
    written: dict[str, str]
    """By method."""


def read_writings(methods: Sequence[str], seed: int, atlas: Atlas) -> list[Writings]:
    """Read what the models of one seed wrote, as text.

    Raises:
        UserError: when an evaluation or the atlas is missing or damaged.
    """

    def text(tokens: Sequence[int]) -> str:
        return "".join(atlas.student_texts[each] for each in tokens)

    found = {
        method: pq.read_table(Artifact(EVALUATIONS / f"{method}-{seed}").file("writings.parquet")).to_pylist()
        for method in methods
    }
    return [
        Writings(
            text(rows[0]["prompt"]), {method: text(row["written"]) for method, row in zip(found, rows, strict=True)}
        )
        for rows in zip(*found.values(), strict=True)
    ]
