"""The section `tokenize`: the tokenizer and the token windows."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cocomix.params.ranges import Megabytes
from cocomix.params.section import Section


class TokenizeParams(Section):
    """The tokenizer and the token windows."""

    source: Literal["train", "pretrained"]
    pretrained: str | None = None
    """Hub id or folder of the tokenizer."""
    revision: str | None = None
    """Commit or tag of the hub id; required with one, as in `HubParams`."""
    vocab_size: Annotated[int, Field(ge=257, le=2**24)] = 4096
    """Entries of the trained byte-level BPE, the end-of-document token included."""
    train_megabytes: Megabytes = 100.0
    """Text to train the tokenizer on, in 10^6 UTF-8 bytes: about, since row groups of the corpus are read whole."""
    context: Annotated[int, Field(ge=2, le=2**24)]
    """Tokens per window; the last token of a window has no next token."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.source == "pretrained" and not self.pretrained:
            raise ValueError("source is pretrained, which needs pretrained: a hub id or a folder")
        return self
