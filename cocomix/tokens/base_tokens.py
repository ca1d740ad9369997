"""Read the tokens of the base model: the students' own, or those of its own tokenizer (`base.tokenizer: own`)."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cocomix.corpus.splits import Split
from cocomix.plumbing.artifact import Artifact
from cocomix.plumbing.errors import UserError
from cocomix.tokens.windows import Tokens


class BaseTokens(Tokens):
    """The tokens that the base model reads.

    With its own tokenizer they are artifacts/base_tokens, which has the files of `Tokens` and `<split>.places.npy`, for
    the splits with labels: see `places`. With a shared one that artifact has no files, and they are artifacts/tokens.

    Args:
        artifacts: the folder of the artifacts.
    """

    def __init__(self, artifacts: Path = Path("artifacts")) -> None:
        self.students = Tokens(artifacts / "tokens")
        own = Artifact(artifacts / "base_tokens")
        self.shared: bool = own.about["tokenizer"] == "shared"
        self.inputs = {"tokens": self.students.artifact, "base_tokens": own}
        """The artifacts behind them, as inputs of a stage."""
        super().__init__((self.students.artifact if self.shared else own).path)

    @cache  # noqa: B019  one reader lives as long as its process
    def places(self, split: Split) -> NDArray[np.signedinteger]:
        """Whose labels each of the students' positions gets, memory-mapped: int32 or int64 [windows, context].

        They are places in all of the base model's windows of the split, window * context + position; -1: none. See
        `cocomix.tokens.alignment`. Only with the base model's own tokenizer.

        Raises:
            UserError: when they are not of the students' windows.
        """
        places = np.load(self.artifact.file(name := f"{split}.places.npy"), mmap_mode="r")
        if places.shape != self.students.windows(split).shape:
            raise UserError(
                f"{self.artifact.path / name}: not of the windows of {self.students.artifact.path}; run the "
                "stage 'base_tokens' again"
            )
        return places
