"""What of a CoCoMix model is Llama's: rotary positions, its blocks, its final norm.

The blocks are Qwen3's: they are Llama's with a norm of each head's queries and keys, which `qk_norm: false` leaves out.
Weights have Llama's names. A token and its continuous concept have the same rotary position, that of the token.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # type: ignore[attr-defined]
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3DecoderLayer,
    Qwen3PreTrainedModel,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
    eager_attention_forward,
    rotate_half,
)

from .body import CoCoMixBody, concept_rows
from .configuration_cocomix import CoCoMixLlamaConfig
from .mixers import MODULES, init_mixer, mixer_of


class _ConceptQueries(Qwen3Attention):
    """Attention with queries from the concept positions only, and keys and values from all positions."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        kind = self.config._attn_implementation
        if kind not in ("eager", "sdpa"):  # flash kernels align a shorter query with the end of the keys
            attended, weights = super().forward(
                hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
            )
            return attended[:, 1::2], None if weights is None else weights[:, :, 1::2]
        cos, sin = position_embeddings
        query = self.q_norm(self._heads(self.q_proj(hidden_states[:, 1::2])))
        key = self.k_norm(self._heads(self.k_proj(hidden_states)))
        query = _rotated(query, cos[:, 1::2], sin[:, 1::2]).transpose(1, 2)
        key, value = _rotated(key, cos, sin).transpose(1, 2), self._heads(self.v_proj(hidden_states)).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        mask = concept_rows(attention_mask, key.shape[2], query.shape[2], key.device)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        attended, weights = attend(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(attended.flatten(2)), weights

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads [batch, length, heads, dim] by their positions' cos and sin [batch or 1, length, dim]."""
    rotated: Tensor = x * cos[:, :, None] + rotate_half(x) * sin[:, :, None]
    return rotated


def _block(config: CoCoMixLlamaConfig, layer_idx: int) -> Qwen3DecoderLayer:
    """A block; with interleaving, the last one is `_LastBlock`."""
    is_last = config.interleaves and layer_idx == config.num_hidden_layers - 1
    block = (_LastBlock if is_last else Qwen3DecoderLayer)(config, layer_idx)
    if not config.qk_norm:
        block.self_attn.q_norm = block.self_attn.k_norm = nn.Identity()
    return block


class _LastBlock(Qwen3DecoderLayer):
    """The last block with interleaving: from 2T positions to the T concept positions that the head reads."""

    def __init__(self, config: CoCoMixLlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = _ConceptQueries(config, layer_idx)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden = hidden_states[:, 1::2] + attended
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class CoCoMixLlamaPreTrainedModel(Qwen3PreTrainedModel):
    """Initialisation, and the attributes that transformers reads."""

    config: CoCoMixLlamaConfig
    _no_split_modules = ["Qwen3DecoderLayer", "_LastBlock", *MODULES]
    _supports_flex_attn = False
    _can_compile_fullgraph = False  # it implies generation with a static cache, which cannot hold two lengths

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_mixer(module, self.config)


class CoCoMixLlamaModel(CoCoMixBody, CoCoMixLlamaPreTrainedModel):
    """`CoCoMixBody` on Llama's blocks, with the names of its parts."""

    def __init__(self, config: CoCoMixLlamaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_block(config, i) for i in range(config.num_hidden_layers))
        self.mixer = mixer_of(config)
        self.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def blocks(self) -> nn.ModuleList:
        """See `CoCoMixBody`."""
        return self.layers

    @property
    def final_norm(self) -> nn.Module:
        """See `CoCoMixBody`."""
        return self.norm

    def _embedded(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:  # noqa: ARG002
        return inputs_embeds

    def _to_blocks(self, hidden: Tensor, position_ids: Tensor) -> dict[str, Any]:
        return {"position_embeddings": self.rotary_emb(hidden, position_ids)}
