"""The section `explain`: the atlas."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cocomix.params.ranges import Positive, Seed, Size
from cocomix.params.section import Section


class ExplainModelParams(Section):
    """A causal language model that writes and tests labels."""

    name: str | None = None
    """Hub id or folder."""
    revision: str | None = None
    """Commit or tag of the hub id; required with one, as in `HubParams`."""
    concepts: Size | None = None
    """Number of most frequent concepts that the model labels; the others keep their tokens as labels. null: all."""
    contexts: Size = 10
    """Strongest contexts in a prompt."""
    judged: Size = 10
    """Held-out contexts with the concept, and as many without it, on which a label is tested."""


class ExplainParams(Section):
    """The atlas: what concepts mean."""

    tokens: Positive
    """Training tokens to search, in whole windows."""
    held_out_tokens: Positive
    """Validation tokens on which labels are tested, in whole windows."""
    contexts: Size
    """Contexts of a concept's strongest firings, at most one per window."""
    quantiles: Size
    """Contexts spread evenly over the strengths of a concept."""
    before: Annotated[int, Field(ge=2, le=2**16)]
    after: Annotated[int, Field(gt=0, le=2**16)]
    """Tokens of a context before and after the token on which the concept fires."""
    sample: Size
    """Random sample of a concept's firings, for the tokens on which it fires and for its label."""
    shown: Size
    """Number of tokens on which a concept fires, of tokens that it promotes, and of nearest concepts to list."""
    label_tokens: Size
    """Most tokens of a label."""
    held_out: Size
    """Held-out firings of a concept on which its label is tested."""
    labeller: Literal["tokens", "model"] = "tokens"
    """tokens: a label is the tokens that distinguish a concept's contexts from others; model: a language model writes
    it."""
    model: ExplainModelParams = ExplainModelParams()
    shard_tokens: Positive
    """Tokens processed together, in whole windows: the unit of resuming and of dividing the work."""
    seed: Seed = 0
    """Seed of the choice of windows and of the samples."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.labeller == "model" and not self.model.name:
            raise ValueError("labeller is model, which needs model.name: a hub id or a folder")
        if self.model.judged > self.held_out:
            raise ValueError(f"model.judged ({self.model.judged}) must not exceed held_out ({self.held_out})")
        if self.model.contexts > self.contexts:
            raise ValueError(f"model.contexts ({self.model.contexts}) must not exceed contexts ({self.contexts})")
        return self
