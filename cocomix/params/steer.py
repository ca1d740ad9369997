"""The section `steer`: the measurement of the steering of concepts."""

from typing import Annotated

from pydantic import Field, field_validator

from cocomix.params.ranges import Seed, Size
from cocomix.params.section import Section


class SteerParams(Section):
    """Measurement of the steering of concepts."""

    concepts: Annotated[int, Field(ge=2, le=2**24)]
    """Concepts to steer, sampled from those that every CoCoMix model mixes in the text; for each, the edits of the
    others are the control."""
    strengths: Annotated[list[Annotated[float, Field(ge=-1e6, le=1e6)]], Field(min_length=1)]
    """Strengths that are set, or factors by which strengths are scaled; some negative, some positive."""
    windows: Size
    """Validation windows to measure the loss on; their first tokens are the prompts."""
    prompt_tokens: Size
    new_tokens: Annotated[int, Field(ge=2, le=2**24)]
    """Tokens of each continuation."""
    promoted: Size
    """Tokens that a concept promotes most: their probability is measured, and predicted concepts list them."""
    read_windows: Size
    """Most validation windows to measure each model's prediction of every concept on."""
    seed: Seed = 0
    """Seed of the choice of concepts and windows, and of the continuations."""

    @field_validator("strengths")
    @classmethod
    def _steer(cls, strengths: list[float]) -> list[float]:
        if 0 in strengths or len(set(strengths)) < len(strengths):
            raise ValueError("must be different numbers other than 0, of which the direction is known")
        if not min(strengths) < 0 < max(strengths):
            raise ValueError("must have a negative and a positive number, to raise and to lower concepts")
        return sorted(strengths)
