"""The shape of each method's and form's model, as keyword arguments of its configuration; its parameters and FLOPs.

It does not import torch, so that planning a run is fast.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, NamedTuple, Protocol

from cocomix.params import (
    Backbone,
    CocomixParams,
    Match,
    MethodParams,
    ModelParams,
    MtpParams,
    PauseParams,
    PretrainParams,
    distillation,
    regresses,
)
from cocomix.plumbing.errors import UserError

Shape = dict[str, Any]


class Vocabulary(Protocol):
    """The properties of the tokens on which shapes depend; `Tokens` has them."""

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""

    @property
    def context(self) -> int:
        """Tokens per window."""

    @property
    def eos_id(self) -> int:
        """The token after a document."""


class Parameters(NamedTuple):
    """Parameter counts; tied embeddings count once."""

    stored: int
    active: int
    """Parameters that one token uses, without the compress rows of concepts that are not mixed (paper App. A)."""


class TeacherSizes(NamedTuple):
    """Sizes of the base model and of the autoencoder, on which shapes depend."""

    concepts: int
    """Number of concepts."""
    base_width: int
    base_flops: int
    """FLOPs per token of the base model's forward pass: the cost of distillation besides the student."""
    base_flops_to_layer: int
    """FLOPs per token up to the concepts' layer: the cost of predicting its hidden state besides the student."""


class Dimensions(NamedTuple):
    """The dimensions of a model, under the names of `ModelParams`."""

    backbone: Backbone
    d_model: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_dim: int
    inner: int
    """Width between the matrices of an MLP."""
    qk_norm: bool
    context: int
    """Positions."""


def dimensions(shape: Mapping[str, Any]) -> Dimensions:
    """The dimensions of a shape, or of a whole configuration."""
    if "n_embd" in shape:
        d, heads = shape["n_embd"], shape["n_head"]
        inner = shape.get("n_inner") or 4 * d
        return Dimensions("gpt2", d, shape["n_layer"], heads, heads, d // heads, inner, False, shape["n_positions"])
    return Dimensions(
        "llama",
        shape["hidden_size"],
        shape["num_hidden_layers"],
        shape["num_attention_heads"],
        shape["num_key_value_heads"],
        shape["head_dim"],
        shape["intermediate_size"],
        shape.get("qk_norm", shape.get("model_type") == "qwen3"),
        shape["max_position_embeddings"],
    )


def deepened(shape: Shape, blocks: int) -> Shape:
    """A shape with so many blocks more."""
    name = "n_layer" if "n_layer" in shape else "num_hidden_layers"
    return shape | {name: shape[name] + blocks}


def plain_shape(model: ModelParams, tokens: Vocabulary) -> Shape:
    """The shape of a plain language model for these tokens."""
    return _gpt2_shape(model, tokens) if model.backbone == "gpt2" else _llama_shape(model, tokens)


def _llama_shape(model: ModelParams, tokens: Vocabulary) -> Shape:
    return {
        "vocab_size": tokens.vocab_size,
        "max_position_embeddings": tokens.context,
        "hidden_size": model.d_model,
        "intermediate_size": swiglu_width(model.d_model),
        "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head,
        "num_key_value_heads": model.n_kv_head or model.n_head,
        "head_dim": model.d_model // model.n_head,
        "qk_norm": model.qk_norm,
        "tie_word_embeddings": True,
        "bos_token_id": tokens.eos_id,
        "eos_token_id": tokens.eos_id,
    }


def swiglu_width(d_model: int) -> int:
    """Width between the three matrices of a SwiGLU: 8/3 `d_model`, rounded up to a multiple of 8.

    They then have as many parameters as the two matrices of an MLP of width 4 `d_model` (arXiv 2002.05202).
    """
    return 8 * ceil(d_model / 3)


def _gpt2_shape(model: ModelParams, tokens: Vocabulary) -> Shape:
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
    }


def cocomix_shape(
    trunk: Shape, cocomix: CocomixParams, tokens: Vocabulary, teacher: TeacherSizes, match: Match
) -> Shape:
    """The shape of a CoCoMix model, or of one of its ablations.

    With predicts: nothing, the MLP is widened to match the model that predicts concepts, in the cost that `match`
    names; with `match` width, in stored parameters.

    Args:
        trunk: the shape of the model without concepts.
    """
    shape = trunk | {
        "predicts": cocomix.predicts,
        "mixing": cocomix.mixing,
        "concept_layer": cocomix.concept_layer,
        "num_concepts": teacher.concepts,
        "concept_k": cocomix.concept_k,
        "concept_head": cocomix.concept_head,
        "concept_init": cocomix.concept_init,
        "tied_scale": cocomix.tied_scale,
        "learned_scale": cocomix.learned_scale,
        "gate": cocomix.gate,
        "stop_gradient": cocomix.stop_gradient,
        "base_width": teacher.base_width,
    }
    if cocomix.predicts != "nothing":
        return shape

    def cost(**changes: object) -> int:
        return _cost(shape | changes, cocomix, match, teacher, tokens.context)

    narrow = cost(mlp_width=1)
    wanted, unit = cost(predicts="concepts") - narrow, cost(mlp_width=2) - narrow
    return shape | {"mlp_width": max(1, 1 + round(wanted / unit))}


def pause_shape(trunk: Shape, pause: PauseParams) -> Shape:
    """The shape of a model with a pause vector after each token."""
    return trunk | {
        "predicts": "nothing",
        "mixing": pause.mixing,
        "concept_layer": pause.layer,
        "num_concepts": 1,
        "concept_k": 1,
    }


def shapes(
    params: PretrainParams, tokens: Vocabulary, teacher: TeacherSizes, pretrained: Shape | None = None
) -> dict[str, Shape | None]:
    """The shape of each method and form; the widths of `ntp`, `kd` and `mtp` follow from `params.match` to `cocomix`.

    None for `kd` if the base model's forward pass alone costs as much as the FLOPs to match: see `shape_of`.

    Args:
        pretrained: the shape of the model from which all go on (`pretrained_shape`); None: they start from scratch.
    """
    trunk = pretrained or plain_shape(params.model, tokens)
    cocomix = cocomix_shape(trunk, params.cocomix, tokens, teacher, params.match)
    target = _cost(cocomix, params.cocomix, params.match, teacher, tokens.context)

    def matched(section: MethodParams) -> Shape | None:
        def cost(model: ModelParams) -> int:
            return _cost(plain_shape(model, tokens), section, params.match, teacher, tokens.context)

        if params.match == "width":
            return trunk
        if params.match == "flops" and base_flops(section, teacher) >= target:
            return None
        return plain_shape(widened(params.model, cost, target), tokens)

    return {
        "ntp": matched(params.ntp),
        "kd": matched(params.kd),
        "pause": pause_shape(trunk, params.pause),
        "mtp": matched(params.mtp),
        "cocomix": cocomix,
        **{name: cocomix_shape(trunk, form, tokens, teacher, params.match) for name, form in params.forms.items()},
    }


def shape_of(method: str, shape: Shape | None) -> Shape:
    """The shape of a method's model, from the result of `shapes`.

    Raises:
        UserError: when no width gives `kd` CoCoMix's training FLOPs.
    """
    if shape is None:
        raise UserError(
            f"pretrain.match: flops: {method} cannot match CoCoMix's training FLOPs per token: its teacher alone costs "
            "more; allowed here: stored, active, width"
        )
    return shape


def widened(model: ModelParams, cost: Callable[[ModelParams], int], target: int) -> ModelParams:
    """`model` at the width whose cost is nearest to `target`.

    The head dimension is a multiple of 8, between half and twice that of `model`, and as near to it as the width
    allows. As many heads of queries read a head of keys as in `model`. Widths that allow neither are skipped.

    Args:
        cost: increases with the width.
    """
    usual, group = model.d_model // model.n_head, model.n_head // (model.n_kv_head or model.n_head)
    allowed = [each for each in range(8, max(8, 2 * usual) + 1, 8) if 2 * each >= usual]
    dims = sorted(allowed, key=lambda each: abs(each - usual))

    def at(width: int) -> ModelParams:
        heads = width // next(each for each in dims if width % (group * each) == 0)
        n_kv_head = model.n_kv_head and heads // group
        return model.model_copy(update={"d_model": width, "n_head": heads, "n_kv_head": n_kv_head})

    most = 8 * dims[0] * group
    while cost(at(most)) < target:
        most *= 2
    widths = [each for each in range(8, most + 1, 8) if any(each % (group * dim) == 0 for dim in dims)]
    above = bisect_left(widths, target, key=lambda each: cost(at(each)))
    return min(map(at, widths[max(0, above - 1) : above + 1]), key=lambda each: abs(cost(each) - target))


def parameters_of(shape: Mapping[str, Any]) -> Parameters:
    """Count the parameters of a plain or CoCoMix model without building it; `shape` may be a whole configuration."""
    size = dimensions(shape)
    d, inner = size.d_model, size.inner
    norm = 2 * d  # of the concept head too, on every backbone
    stored = shape["vocab_size"] * d
    if size.backbone == "gpt2":
        block = 2 * norm + (3 * d * d + 3 * d) + (d * d + d) + (d * inner + inner) + (inner * d + d)
        stored += size.context * d + size.n_layer * block + norm
    else:
        heads = 2 * d * (size.n_head + size.n_kv_head) * size.head_dim
        block = 2 * d + heads + 3 * d * inner + size.qk_norm * 2 * size.head_dim
        stored += size.n_layer * block + d
    if "concept_layer" not in shape:
        return Parameters(stored, stored)
    mixes, concepts = shape["mixing"] != "none", shape["num_concepts"]
    stored += shape.get("gate", False)
    match shape["predicts"]:
        case "concepts":
            pre_bias = d if mixes or shape["concept_head"] == "released" else 0
            stored += concepts * d + concepts + pre_bias + mixes * concepts * d + shape.get("learned_scale", False)
            return Parameters(stored, stored - mixes * (concepts - shape["concept_k"]) * d)
        case "hidden":
            width = shape["base_width"]
            stored += norm + (4 * d * d + 4 * d) + (4 * d * width + width) + mixes * (width * d + d)
        case "nothing":
            width = shape.get("mlp_width", 0)
            stored += norm + (d * width + width) + (width * d + d) if width else d
    return Parameters(stored, stored)


def flops_per_token(shape: Mapping[str, Any], context: int) -> int:
    """FLOPs of a forward pass over `context` tokens, per text token.

    Matrix products only, two operations per multiply-add; attention over the full square, as dense kernels compute it.
    A training step costs three times as much. With interleaving, every token has two of 2 x context positions above
    the concept layer; the last block computes one of the two.
    """
    size = dimensions(shape)
    d, layers, queries, keys = size.d_model, size.n_layer, size.n_head * size.head_dim, size.n_kv_head * size.head_dim
    mlp = (2 if size.backbone == "gpt2" else 3) * d * size.inner

    def block(length: int) -> int:
        projections = 2 * (2 * d * queries + 2 * d * keys + mlp)
        attention = 2 * 2 * length * queries
        return projections + attention

    head = 2 * d * shape["vocab_size"]
    if "concept_layer" not in shape:
        return layers * block(context) + head
    if shape["mixing"] not in ("interleave", "interleave_with_state"):
        return layers * block(context) + _mixer_flops(shape) + head
    keys_and_values_of_the_token = 2 * 2 * d * keys
    last = block(2 * context) + keys_and_values_of_the_token
    below, above = shape["concept_layer"], layers - shape["concept_layer"]
    return below * block(context) + (above - 1) * 2 * block(2 * context) + last + _mixer_flops(shape) + head


def further_tokens_flops(shape: Mapping[str, Any], context: int) -> int:
    """FLOPs of a forward pass for one further token of multi-token prediction: a block and the head."""
    return flops_per_token(deepened(dict(shape), 1 - dimensions(shape).n_layer), context)


def block_matrices(shape: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Rows and columns of the matrices of all blocks, with queries, keys and values as matrices of their own."""
    size = dimensions(shape)
    d, queries, keys = size.d_model, size.n_head * size.head_dim, size.n_kv_head * size.head_dim
    attention = [(d, queries), (d, keys), (d, keys), (queries, d)]
    mlp = [(d, size.inner), (size.inner, d)] if size.backbone == "gpt2" else 3 * [(d, size.inner)]
    return (attention + mlp) * size.n_layer


def newton_schulz_flops(rows: int, columns: int) -> int:
    """FLOPs of Muon's orthogonalisation of a matrix: five iterations, each of three matrix products."""
    small, large = sorted((rows, columns))
    return 5 * (2 * small * small * large + 2 * small**3 + 2 * small * small * large)


def training_flops(shape: Mapping[str, Any], section: MethodParams, teacher: TeacherSizes, context: int) -> int:
    """FLOPs of training on one text token: three forward passes, and what of the base model runs beside."""
    forward = flops_per_token(shape, context)
    if isinstance(section, MtpParams):
        forward += (section.tokens - 1) * further_tokens_flops(shape, context)
    return 3 * forward + base_flops(section, teacher)


def base_flops(section: MethodParams, teacher: TeacherSizes) -> int:
    """FLOPs per token of the base model beside a method's model, on average over the steps of training."""
    flops, taught = regresses(section) * teacher.base_flops_to_layer, distillation(section)
    if taught and taught.source == "online":
        flops += round(taught.schedule.until * teacher.base_flops)
    return flops


def _mixer_flops(shape: Mapping[str, Any]) -> int:
    d, mixes = dimensions(shape).d_model, shape["mixing"] != "none"
    match shape["predicts"]:
        case "concepts":
            return 2 * d * (shape["num_concepts"] + mixes * shape["concept_k"])
        case "hidden":
            return 2 * (4 * d * d + (4 + mixes) * d * shape["base_width"])
        case _:
            return 2 * 2 * d * shape.get("mlp_width", 0)


def _cost(shape: Shape, section: MethodParams, match: Match, teacher: TeacherSizes, context: int) -> int:
    if match == "flops":
        return training_flops(shape, section, teacher, context)
    counted = parameters_of(shape)
    return counted.active if match == "active" else counted.stored
