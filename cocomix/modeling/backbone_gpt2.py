"""What of a CoCoMix model is GPT-2's: embeddings of positions, its blocks, its final norm."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # type: ignore[attr-defined]
from transformers.models.gpt2.modeling_gpt2 import (
    GPT2Attention,
    GPT2Block,
    GPT2PreTrainedModel,
    eager_attention_forward,
)
from transformers.pytorch_utils import Conv1D

from .body import CoCoMixBody, concept_rows
from .configuration_cocomix import CoCoMixConfig
from .mixers import MODULES, init_mixer, mixer_of


class _ConceptQueries(GPT2Attention):
    """Attention with queries from the concept positions only, and keys and values from all positions."""

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        kind = self.config._attn_implementation
        if kind not in ("eager", "sdpa") or self.reorder_and_upcast_attn or not _is_bare(self.c_attn):
            # Flash kernels align a shorter query with the end of the keys; a wrapper around c_attn must be called.
            attended, weights = super().forward(hidden_states, past_key_values, attention_mask, **kwargs)
            return attended[:, 1::2], None if weights is None else weights[:, :, 1::2]
        d, weight, bias = self.embed_dim, self.c_attn.weight.t(), self.c_attn.bias
        query = self._heads(F.linear(hidden_states[:, 1::2], weight[:d], bias[:d]))
        key, value = map(self._heads, F.linear(hidden_states, weight[d:], bias[d:]).chunk(2, dim=-1))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        mask = concept_rows(attention_mask, key.shape[2], query.shape[2], key.device)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)
        dropout = self.attn_dropout.p if self.training else 0.0
        attended, weights = attend(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.resid_dropout(self.c_proj(attended.flatten(2))), weights

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)


def _is_bare(layer: nn.Module) -> bool:
    """Whether a layer is a plain Conv1D, without an adapter or hooks."""
    hooks = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
    return type(layer) is Conv1D and not any(hooks)


class _LastBlock(GPT2Block):
    """The last block with interleaving: from 2T positions to the T concept positions that the head reads."""

    def __init__(self, config: CoCoMixConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.attn = _ConceptQueries(config, layer_idx=layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        attended, _ = self.attn(self.ln_1(hidden_states), past_key_values, attention_mask, **kwargs)
        hidden = hidden_states[:, 1::2] + attended
        output: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return output


class CoCoMixPreTrainedModel(GPT2PreTrainedModel):
    """Initialisation, and the attributes that transformers reads."""

    config: CoCoMixConfig
    _no_split_modules = ["GPT2Block", "_LastBlock", *MODULES]
    _can_compile_fullgraph = False  # it implies generation with a static cache, which cannot hold two lengths
    _can_record_outputs = {"hidden_states": GPT2Block, "attentions": GPT2Attention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_mixer(module, self.config)


class CoCoMixModel(CoCoMixBody, CoCoMixPreTrainedModel):
    """`CoCoMixBody` on GPT-2, with the names of its parts."""

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPT2Block(config, layer_idx=i) for i in range(config.n_layer))
        if config.interleaves:
            self.h[-1] = _LastBlock(config, layer_idx=config.n_layer - 1)
        self.mixer = mixer_of(config)
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings."""
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embeddings."""
        self.wte = value

    @property
    def blocks(self) -> nn.ModuleList:
        """See `CoCoMixBody`."""
        return self.h

    @property
    def final_norm(self) -> nn.Module:
        """See `CoCoMixBody`."""
        return self.ln_f

    def _embedded(self, inputs_embeds: Tensor, position_ids: Tensor) -> Tensor:
        hidden: Tensor = self.drop(inputs_embeds + self.wpe(position_ids))
        return hidden

    def _to_blocks(self, hidden: Tensor, position_ids: Tensor) -> dict[str, Any]:  # noqa: ARG002
        return {}
