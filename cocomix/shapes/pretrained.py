"""The shape of the pretrained model from which language models go on (`pretrain.init`), from its configuration."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cocomix.params import PretrainParams
from cocomix.plumbing.errors import UserError
from cocomix.shapes.models import Shape, Vocabulary, dimensions


class Family(NamedTuple):
    """What is read in the configurations of a family, by transformers' names."""

    kept: tuple[str, ...]
    """The fields that students keep as they are."""
    required: Mapping[str, bool]
    """Fields that must have these values: the students' blocks are built for no others."""


_LLAMA = Family(
    kept=(
        *("max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters", "initializer_range"),
    ),
    required={"tie_word_embeddings": True, "attention_bias": False},
)
FAMILIES = {
    "gpt2": Family(
        kept=(
            *("n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon", "initializer_range"),
            *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
        ),
        required={"tie_word_embeddings": True, "add_cross_attention": False},
    ),
    "llama": _LLAMA._replace(required={**_LLAMA.required, "mlp_bias": False}),
    "qwen3": _LLAMA._replace(required={**_LLAMA.required, "use_sliding_window": False}),
}
"""By `model_type`."""


def check_pretrained(config: Mapping[str, Any], params: PretrainParams, context: int) -> None:
    """Check that the methods can go on from a model.

    Args:
        config: its configuration.
        context: tokens per window.

    Raises:
        UserError: in one line, when it is of another family, or too short or too shallow.
    """
    where, kind = f"pretrain.init.path: {params.init.path!r}", config["model_type"]
    if kind not in FAMILIES:
        raise UserError(f"{where}: {kind}; allowed: {', '.join(FAMILIES)}")
    for field, value in FAMILIES[kind].required.items():
        if config[field] != value:
            raise UserError(f"{where}: has {field}: {config[field]}; allowed: {value}")
    size = dimensions(config)
    if size.backbone == "llama" and params.model.dropout:
        raise UserError(f"{where}: {kind}; pretrain.model.dropout ({params.model.dropout:g}) must be 0")
    if size.d_model % size.n_head:
        raise UserError(f"{where}: has a width of {size.d_model}, no multiple of its {size.n_head} heads")
    if size.context < context:
        raise UserError(f"{where} has a context of {size.context}; tokenize.context is {context}")
    for key, layer in params.concept_layers.items():
        if layer >= size.n_layer:
            raise UserError(f"{where} has {size.n_layer} blocks; pretrain.{key} ({layer}) must be below that")


def pretrained_shape(config: Mapping[str, Any], dropout: float, tokens: Vocabulary) -> Shape:
    """The shape of a language model that goes on from a model, without concepts.

    It is the model's, with all its positions, but for the dropout, which says how the training is done, and for what
    belongs to the tokens. A vocabulary that is padded beyond that of the tokens is cut.

    Args:
        config: the model's configuration, which `check_pretrained` has checked.
        dropout: `pretrain.model.dropout`.
    """
    kind = config["model_type"]
    shape = {name: config[name] for name in FAMILIES[kind].kept}
    shape |= {"vocab_size": tokens.vocab_size, "bos_token_id": tokens.eos_id, "eos_token_id": tokens.eos_id}
    if kind != "gpt2":
        return shape | {"qk_norm": kind == "qwen3", "tie_word_embeddings": True}
    activation = config["activation_function"]
    return shape | {
        # As `plain_shape` has it, which is the same function.
        "activation_function": "gelu_pytorch_tanh" if activation == "gelu_new" else activation,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
    }
