"""The section `corpus`: the source of the documents, and the splits."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cocomix.params.ranges import Fraction, Megabytes, Positive
from cocomix.params.section import Section


class FilesParams(Section):
    """Text files on this machine."""

    paths: list[str] = []
    """Globs relative to the project: .txt, .md, .jsonl, .parquet, each plain or .gz or .zst. A text file is one
    document, cut at blank lines where it is longer than 2^16 characters."""
    text_field: str = "text"
    """Field or column that holds the text (.jsonl, .parquet)."""


class HubParams(Section):
    """A dataset of the Hugging Face hub."""

    dataset: str | None = None
    config: str | None = None
    revision: str | None = None
    """Commit or tag; required, because the data may change without it. A tag can be moved; a commit cannot."""
    split: str = "train"
    text_field: str = "text"
    limit: Positive | None = None
    """Most documents to read; null: all."""


class InstalledDocsParams(Section):
    """The documentation of Python and of the installed packages that are used here."""

    megabytes: Megabytes | None = None
    """Most text to keep, in 10^6 UTF-8 bytes; null: all."""


class CorpusParams(Section):
    """The corpus: the source of its documents, and the splits."""

    source: Literal["installed-docs", "files", "hub"]
    installed_docs: InstalledDocsParams = InstalledDocsParams()
    files: FilesParams = FilesParams()
    hub: HubParams = HubParams()
    megabytes: Megabytes | None = None
    """Most text to keep of any source, in 10^6 UTF-8 bytes; null: all."""
    validation_share: Fraction
    """Share of the documents (installed-docs: of the bytes, in whole packages) that becomes the validation split."""
    test_share: Fraction
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Similarity from which two documents are near-duplicates, of which one is kept; null: all are kept."""
    decontaminate: Literal["count", "drop"] | None = None
    """What happens to documents that contain a piece of a text of evaluate.tasks or evaluate.corpora; null: they are
    not looked for."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.source == "files" and not self.files.paths:
            raise ValueError("source is files, but files.paths is empty: give at least one glob")
        if self.source == "installed-docs" and self.near_duplicates is not None:
            raise ValueError("near_duplicates needs source: files or hub; installed-docs drops them by itself")
        if self.source == "hub" and not (self.hub.dataset and self.hub.revision):
            raise ValueError("source is hub, which needs hub.dataset and hub.revision")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must be below 1: nothing is left for training")
        return self

    @property
    def used(self) -> dict[str, Any]:
        """The parameters that the corpus depends on: without options that are off or only count."""
        options = {"near_duplicates": self.near_duplicates is None, "decontaminate": self.decontaminate != "drop"}
        return self.model_dump(mode="json", exclude={name for name, is_off in options.items() if is_off})

    @property
    def limit(self) -> tuple[str, float]:
        """The key that limits the text, and most of its UTF-8 bytes; infinite: all."""
        limits = {"corpus.megabytes": self.megabytes}
        if self.source == "installed-docs":
            limits["corpus.installed_docs.megabytes"] = self.installed_docs.megabytes
        found = {key: math.inf if each is None else each * 1e6 for key, each in limits.items()}
        return min(found.items(), key=lambda each: each[1])
