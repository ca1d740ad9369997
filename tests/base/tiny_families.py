"""Tiny random models of many families, by transformers' name of the family; what of the method each family allows."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

WIDTH, BLOCKS, VOCAB = 16, 3, 64
_USUAL = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "max_position_embeddings": 32,
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "state_size": 8,
}
"""Of what the family's configuration has."""

_GPT2 = {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 2, "n_positions": 32}
_DECODER = {"d_model": WIDTH, "decoder_layers": BLOCKS, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 4}
_LATENT |= {"num_key_value_heads": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "head_dim": 8}
_MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_LINEAR = {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}


@dataclass(frozen=True)
class Family:
    """What a family's model allows."""

    more: dict[str, Any]
    """Of its configuration, besides the usual."""
    parts: str = "resid_mid attn_out mlp_out"
    """Sites within block 2."""
    apart: bool = True
    """Whether a mask keeps documents apart."""
    next_token: bool = True
    """Whether positions above block 2 see each other by keys and values alone."""
    flops: bool = True
    """Whether all that it multiplies is matrices: a recurrence's steps are not counted."""
    shift: int = 0
    """How much earlier in transformers' hidden_states a block's output stands."""


_PARALLEL = {"parts": "attn_out mlp_out"}
_PARTS_APART = {"parts": "resid_mid attn_out"}
_OWN_ATTENTION = {"next_token": False}
_NO_MASK = {"apart": False}

FAMILIES = {
    "gpt2": Family(_GPT2),
    "gpt_neo": Family({"num_layers": 3, "num_heads": 2, "attention_types": [[["global"], 3]]}, **_OWN_ATTENTION),
    "gptj": Family(_GPT2 | {"rotary_dim": 4}, **_PARALLEL, **_OWN_ATTENTION),
    "gpt_neox": Family({}, **_PARALLEL),
    "gpt_bigcode": Family(_GPT2),
    "openai-gpt": Family(_GPT2, parts="", apart=False, next_token=False),
    "codegen": Family(_GPT2 | {"n_head": 4, "rotary_dim": 4}, **_PARALLEL, **_OWN_ATTENTION),
    "opt": Family({"word_embed_proj_dim": WIDTH}, parts="attn_out"),
    "bloom": Family({"n_layer": 3, "n_head": 2}, parts="", apart=False, next_token=False),
    "mpt": Family({"d_model": WIDTH, "n_heads": 2, "n_layers": 3, "max_seq_len": 32}, **_PARTS_APART, **_OWN_ATTENTION),
    "falcon": Family({}, **_PARALLEL, **_OWN_ATTENTION),
    "biogpt": Family({}, **_PARTS_APART),
    "xglm": Family({"d_model": WIDTH, "num_layers": 3, "attention_heads": 2}, **_PARTS_APART, **_OWN_ATTENTION),
    "llama": Family({}),
    "mistral": Family({"sliding_window": None}),
    "mixtral": Family({}),
    "qwen2": Family({}),
    "qwen2_moe": Family({}),
    "qwen3": Family({}),
    "qwen3_moe": Family({}),
    "gemma": Family({}),
    "gemma2": Family({}, **_OWN_ATTENTION),
    "gemma3_text": Family({}),
    "phi": Family({}, **_PARALLEL),
    "phi3": Family({}),
    "stablelm": Family({}),
    "olmo": Family({}),
    "olmo2": Family({}, **_PARALLEL),
    "cohere": Family({}, **_PARALLEL),
    "starcoder2": Family({"sliding_window": None}),
    "glm4": Family({}),
    "granite": Family({"residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "granitemoe": Family({}),
    "persimmon": Family({}),
    "smollm3": Family({}),
    "gpt_oss": Family({}, **_OWN_ATTENTION),
    "deepseek_v3": Family(_LATENT),
    "lfm2": Family({"layer_types": ["conv", "full_attention", "full_attention"]}, **_NO_MASK, flops=False),
    "mamba": Family({}, parts="", apart=False, next_token=False, flops=False, shift=1),
    "mamba2": Family(
        {"num_heads": 4, "n_groups": 1, "chunk_size": 8}, parts="", apart=False, next_token=False, flops=False, shift=1
    ),
    "falcon_mamba": Family({}, parts="", apart=False, next_token=False, flops=False, shift=1),
    "rwkv": Family({}, parts="attn_out mlp_out", apart=False, next_token=False, flops=False, shift=1),
    "recurrent_gemma": Family({"lru_width": WIDTH, "attention_window_size": 8}, parts="", apart=False, flops=False),
    "jamba": Family(
        {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8}, **_NO_MASK, **_OWN_ATTENTION, flops=False
    ),
    "bamba": Family(_MAMBA | {"attn_layer_indices": [1, 2]}, **_NO_MASK, flops=False),
    "qwen3_next": Family(
        _LINEAR | {"layer_types": ["linear_attention", "full_attention", "full_attention"]}, **_NO_MASK, flops=False
    ),
}


AT_ONCE = ("gpt2", "opt", "bloom", "mpt", "falcon", "gpt_neox", "gemma2", "mixtral", "mamba", "rwkv", "jamba")
"""Of one kind each; the others are tested with the slow tests."""


def config_of(family: str, more: dict[str, Any]) -> PreTrainedConfig:
    """A tiny configuration."""
    kind = CONFIG_MAPPING[family]
    usual = {name: value for name, value in _USUAL.items() if name in kind.__dataclass_fields__}
    return kind(**(usual | more))


def tiny(family: str) -> PreTrainedModel:
    """A random model of one of `FAMILIES`."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(family, FAMILIES[family].more))


def with_images() -> dict[str, PreTrainedModel]:
    """Random models of text and images, by their family."""
    torch.manual_seed(0)
    sees = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": BLOCKS}
    sees |= {"image_size": 28, "patch_size": 14}
    text = {name: config_of(name, {}) for name in ("gemma3_text", "llama")}
    gemma3 = CONFIG_MAPPING["gemma3"](text_config=text["gemma3_text"], vision_config=sees, mm_tokens_per_image=4)
    llava = CONFIG_MAPPING["llava"](text_config=text["llama"], vision_config={"model_type": "clip_vision_model"} | sees)
    return {
        "gemma3": AutoModelForCausalLM.from_config(gemma3),
        "llava": AutoModelForImageTextToText.from_config(llava),
    }
