"""The shape of the pretrained model from which language models go on (`pretrain.init`), from its configuration."""

from collections.abc import Mapping
from typing import Any

from cocomix.params import PretrainParams
from cocomix.plumbing.errors import UserError
from cocomix.shapes.models import Shape, Vocabulary, gpt2_shape

KEPT = (
    *("n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon", "initializer_range"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
)
"""The fields of its configuration that students keep as they are."""


def check_pretrained(config: Mapping[str, Any], params: PretrainParams, context: int) -> None:
    """Check that the methods can go on from a model.

    Args:
        config: its configuration.
        context: tokens per window.

    Raises:
        UserError: in one line, when it is no GPT-2, or too short or too shallow.
    """
    where = f"pretrain.init.path: {params.init.path!r}"
    if config["model_type"] != "gpt2":
        raise UserError(f"{where}: a {config['model_type']}; allowed: models of the class GPT2LMHeadModel (gpt2)")
    for field, wanted in {"tie_word_embeddings": True, "add_cross_attention": False}.items():
        if config[field] != wanted:
            raise UserError(f"{where}: has {field}: {config[field]}; allowed: {wanted}")
    if config["n_positions"] < context:
        raise UserError(f"{where} has a context of {config['n_positions']}; tokenize.context is {context}")
    for key, layer in params.concept_layers.items():
        if layer >= config["n_layer"]:
            raise UserError(f"{where} has {config['n_layer']} blocks; pretrain.{key} ({layer}) must be below that")


def pretrained_shape(config: Mapping[str, Any], params: PretrainParams, tokens: Vocabulary) -> Shape:
    """The shape of a language model that goes on from a model, without concepts.

    It is the model's, with all its positions, but for what belongs to the tokens and for the dropout, which is
    `pretrain.model.dropout`: it says how the training is done, and no weight depends on it. A vocabulary that is padded
    beyond that of the tokens is cut.

    Args:
        config: the model's configuration, which `check_pretrained` has checked.
    """
    shape = gpt2_shape(params.model, tokens) | {name: config[name] for name in KEPT}
    activation = config["activation_function"]
    return shape if activation == "gelu_new" else shape | {"activation_function": activation}
