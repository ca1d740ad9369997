"""The section `distribution`: the base model's sampled next-token distribution."""

from typing import Annotated

from pydantic import Field

from cocomix.params.ranges import Positive, Seed, Temperature
from cocomix.params.section import Section


class DistributionParams(Section):
    """The base model's next-token distribution, sampled once for all models that learn from it (arXiv 2503.16870)."""

    draws: Annotated[int, Field(gt=0, le=255)] | None = None
    """Tokens drawn with replacement at each position (50: 25 to 50 bytes per token); null: none are stored."""
    temperature: Temperature = 1.0
    """Divides the base model's logits before the draw."""
    shard_tokens: Positive = 65_536
    """Tokens per Parquet file, in whole windows: the unit of resuming and of dividing the work."""
    seed: Seed = 0
