"""The section `activations`: the stored activations of the base model."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cocomix.params.ranges import Positive, Seed, Size
from cocomix.params.section import Section
from cocomix.params.sites import SiteName


class ActivationsParams(Section):
    """The stored activations of the base model."""

    sites: Annotated[list[SiteName], Field(min_length=1)]
    """Sites in the base model, all read in one pass: `resid_post_2` is the residual stream after 2 blocks,
    `hidden_states[2]`; the other locations are resid_mid, attn_out, mlp_out."""
    tokens: Positive
    """Training activations to store per site, in whole windows."""
    validation_tokens: Positive
    """Held-out activations to store per site, from the validation split."""
    drop_first: bool = False
    """Whether to drop position 0 of each window (with separate_documents, of each document), whose activations are far
    larger than all others in many models."""
    drop_tokens: list[Annotated[int, Field(ge=-(2**40), le=2**40)] | str] = []
    """Tokens to drop, by id or by their text in the vocabulary."""
    separate_documents: bool = False
    """Whether attention and position ids restart at each document of a window. This affects the stored activations
    only; labels, spliced losses and the atlas use whole windows, as the language models do."""
    dtype: Literal["fp16", "bf16", "int8"] = "fp16"
    """Type of the stored numbers. bf16: for activations above 65504; int8: half the size, scaled per dimension."""
    shard_tokens: Positive
    """Tokens per Parquet file: the range of the shuffle on disk, and the unit of resuming."""
    row_group_tokens: Size
    """Tokens per row group: the unit of reading."""
    mixed_shards: Size | None = None
    """Files whose row groups are shuffled together when reading; null: all."""
    keep: bool = True
    """Whether to store the training activations. If not, autoencoder training recomputes them in each epoch, in the
    same order, for each site and in each process, and holds `mixed_shards` files in memory."""
    seed: Seed = 0
    """Seed of the choice of windows and of the shuffle."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(set(self.sites)) < len(self.sites):
            raise ValueError(f"sites lists a value twice: {self.sites}")
        if not self.keep and self.mixed_shards is None:
            raise ValueError("keep is false, which needs mixed_shards: as many files as fit into memory")
        return self
