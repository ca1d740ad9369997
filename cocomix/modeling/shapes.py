"""Model configurations from parameters."""

from typing import Any

from transformers import GPT2Config

from cocomix.device import attention
from cocomix.modeling.configuration_cocomix import CoCoMixConfig
from cocomix.params import CocomixParams, ModelParams
from cocomix.tokens import Tokens


def gpt2_config(model: ModelParams, tokens: Tokens) -> GPT2Config:
    """A GPT-2 of this shape, for these tokens."""
    return GPT2Config(**_shape(model, tokens))


def cocomix_config(model: ModelParams, cocomix: CocomixParams, tokens: Tokens, latents: int) -> CoCoMixConfig:
    """A CoCoMix model of this shape, for these tokens, that predicts the concepts of a dictionary of `latents`."""
    return CoCoMixConfig(
        **_shape(model, tokens),
        num_concepts=latents,
        concept_layer=cocomix.concept_layer,
        concept_k=cocomix.concept_k,
        concept_init=cocomix.concept_init,
    )


def _shape(model: ModelParams, tokens: Tokens) -> dict[str, Any]:
    return {
        "vocab_size": tokens.vocab_size,
        "n_positions": tokens.context,
        "n_embd": model.d_model,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "activation_function": "gelu_pytorch_tanh",  # GPT-2's gelu_new in one kernel instead of eight
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.dropout,
        "bos_token_id": tokens.eos_id,
        "eos_token_id": tokens.eos_id,
        "attn_implementation": attention(tokens.context),
    }
