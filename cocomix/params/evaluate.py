"""The section `evaluate`: the measurements of the trained models."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from cocomix.params.ranges import Megabytes, Positive, Size
from cocomix.params.section import Section


def _is_corpus_name(name: str) -> str:
    if name in ("train", "validation", "test") or not re.fullmatch("[A-Za-z][A-Za-z0-9_-]{0,99}", name):
        raise ValueError("allowed: a letter, then letters, digits, _ and - (100 in all); not train, validation, test")
    return name


class EvaluationCorpusParams(Section):
    """A further evaluation corpus, from files as in `FilesParams`."""

    paths: Annotated[list[str], Field(min_length=1)]
    text_field: str = "text"
    megabytes: Megabytes | None = None
    """Most text to use, from the beginning, in 10^6 UTF-8 bytes; null: all."""


class EvaluateParams(Section):
    """Evaluation of the trained models."""

    batch_size: Size
    """Most windows per forward pass."""
    stride: Positive | None = None
    """Tokens between the starts of two windows: each token is predicted once, from at least context - stride tokens.
    null: windows do not overlap, and the first token of each is not predicted."""
    corpora: dict[Annotated[str, AfterValidator(_is_corpus_name)], EvaluationCorpusParams] = {}
    """Further corpora, by their names in the metrics."""
    intervention_windows: Annotated[int, Field(ge=2, le=2**24)]
    """Validation windows on which a model's concepts are changed, to measure the effect on its loss: at least two,
    since vectors are exchanged between windows."""
    tasks: list[str] = []
    """lm-eval tasks, by name."""
    tasks_dir: str | None = None
    """Folder of the tasks' data; null: the hub."""
    task_limit: Positive | None = None
    """Most examples per task; null: all."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks lists a value twice: {self.tasks}")
        return self
