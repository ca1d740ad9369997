"""The section `base`: the base model."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cocomix.params.model import ModelParams
from cocomix.params.ranges import Seed
from cocomix.params.section import Section
from cocomix.params.training import TrainingParams


class BaseParams(Section):
    """The base model (teacher): the language model whose hidden states the concepts describe."""

    source: Literal["train", "pretrained"]
    pretrained: str | None = None
    """Hub id or folder of a causal language model."""
    revision: str | None = None
    """Commit or tag of the hub id; required with one, as in `HubParams`."""
    tokenizer: Literal["shared", "own"] = "shared"
    """shared: it reads the tokens of the students; own: it keeps its own tokenizer, and labels are aligned."""
    context: Annotated[int, Field(ge=2, le=2**24)] | None = None
    """Tokens per window of its own tokenizer; null: tokenize.context."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights and hidden states of a pretrained model. bf16: half the memory and disk, and less precise."""
    seed: Seed = 0
    model: ModelParams
    training: TrainingParams

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.source == "pretrained" and not self.pretrained:
            raise ValueError("source is pretrained, which needs pretrained: a hub id or a folder")
        if self.tokenizer == "own" and self.source == "train":
            raise ValueError(
                "tokenizer: own needs source: pretrained; one that is trained here reads the students' tokens"
            )
        if self.tokenizer == "shared" and self.context is not None:
            raise ValueError(f"context ({self.context}) needs tokenizer: own; a shared one has tokenize.context")
        if self.dtype != "fp32" and self.source == "train":
            raise ValueError(f"dtype: {self.dtype} needs source: pretrained; one that is trained here has fp32 weights")
        return self
