"""The section `attribution`: the labels."""

from typing import Literal, Self

from pydantic import model_validator

from cocomix.params.ranges import Positive, Size
from cocomix.params.section import Section

Score = Literal["gradient", "activation", "integrated", "ablation"]
Sign = Literal["released", "helpful", "absolute"]
Scope = Literal["sequence", "next_token"]


class AttributionParams(Section):
    """Which concepts matter for the next token (paper Eq. 1)."""

    k_attr: Size
    """Labels per position (paper: 4)."""
    score: Score
    """gradient: gradient times activation (paper Eq. 1); activation: the activation alone (Fig. 6a); integrated:
    gradient times activation, with the gradient averaged along the path from no latents to all of them; ablation: the
    loss minus the loss with the latent set to zero, which is exact and hundreds of times slower."""
    sign: Sign
    """For scores that are a change of the loss. released: the largest positive ones, without which the loss would fall;
    helpful: the most negative ones, without which it would rise; absolute: the largest magnitudes."""
    scope: Scope = "sequence"
    """The loss in the score. sequence: the whole window's (released code); next_token: the position's own next-token
    loss (paper Eq. 1)."""
    value: Literal["activation", "pre_activation"] = "activation"
    """The factor of the gradient. activation: latents after the selection, so that only active ones become labels
    (released code); pre_activation: latents before the selection, of the whole dictionary (paper Eq. 1)."""
    integrated_steps: Size = 8
    """Gradients along the path, with score: integrated."""
    shard_tokens: Positive
    """Tokens per Parquet file, in whole windows: the unit of resuming and of dividing the work."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.value == "pre_activation" and self.score != "gradient":
            raise ValueError(f"value: pre_activation needs score: gradient, not {self.score}")
        if self.score == "activation" and self.scope == "next_token":
            raise ValueError("scope: next_token needs a score that is a change of the loss, not activation")
        if self.score == "activation" and self.sign != "released":
            raise ValueError(f"sign: {self.sign} needs a score that is a change of the loss, not activation")
        return self
