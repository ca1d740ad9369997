"""The sections `base.model` and `pretrain.model`: the shape of a language model."""

from typing import Literal, Self

from pydantic import model_validator

from cocomix.params.ranges import Layers, Share, Size
from cocomix.params.section import Section

Backbone = Literal["gpt2", "llama"]


class ModelParams(Section):
    """The shape of a plain language model."""

    backbone: Backbone = "gpt2"
    """llama: RMSNorm, rotary positions, SwiGLU, and the two options below, which are of llama only."""
    d_model: Size
    n_layer: Layers
    n_head: Size
    n_kv_head: Size | None = None
    """Heads of keys and values, each read by n_head / n_kv_head heads of queries; null: n_head."""
    qk_norm: bool = False
    """Whether each head's queries and keys are normalised."""
    dropout: Share = 0.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.d_model % self.n_head:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of n_head ({self.n_head})")
        if self.backbone == "gpt2" and (self.n_kv_head or self.qk_norm):
            raise ValueError("n_kv_head and qk_norm are of backbone: llama; with gpt2, they must be null and false")
        if self.backbone == "llama":
            if self.d_model // self.n_head % 2:
                raise ValueError(f"d_model ({self.d_model}) must be an even multiple of n_head ({self.n_head})")
            if self.n_head % (self.n_kv_head or 1):
                raise ValueError(f"n_head ({self.n_head}) must be a multiple of n_kv_head ({self.n_kv_head})")
            if self.dropout:
                raise ValueError(f"dropout ({self.dropout:g}) must be 0 with backbone: llama")
        return self
