"""The shape of each method's model, as keyword arguments of its configuration."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

from transformers import GPT2Config

from cocomix.device import attention
from cocomix.modeling.accounting import flops_per_token, parameters_of
from cocomix.modeling.configuration_cocomix import CoCoMixConfig
from cocomix.params import CocomixParams, Match, Method, ModelParams, PauseParams, PretrainParams
from cocomix.tokens import Tokens

Shape = dict[str, Any]


class Sources(NamedTuple):
    """What shapes depend on besides the parameters."""

    latents: int
    """Size of the dictionary of concepts."""
    base_width: int
    base_flops: int
    """Of the base model's forward pass, a token: what distillation costs besides the student."""
    base_flops_to_layer: int
    """Of that, up to the layer that the concepts describe: what learning from its hidden state costs."""


def gpt2_shape(model: ModelParams, tokens: Tokens) -> Shape:
    """A GPT-2 of this shape, for these tokens."""
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


def cocomix_shape(model: ModelParams, cocomix: CocomixParams, tokens: Tokens, sources: Sources) -> Shape:
    """A CoCoMix model, or one of its ablations."""
    return gpt2_shape(model, tokens) | {
        "predicts": cocomix.predicts,
        "mixing": cocomix.mixing,
        "concept_layer": cocomix.concept_layer,
        "num_concepts": sources.latents,
        "concept_k": cocomix.concept_k,
        "concept_head": cocomix.concept_head,
        "concept_init": cocomix.concept_init,
        "stop_gradient": cocomix.stop_gradient,
        "base_width": sources.base_width,
    }


def pause_shape(model: ModelParams, pause: PauseParams, tokens: Tokens) -> Shape:
    """A model with a pause vector after each token."""
    return gpt2_shape(model, tokens) | {
        "predicts": "nothing",
        "mixing": "interleave",
        "concept_layer": pause.layer,
        "num_concepts": 1,
        "concept_k": 1,
    }


def shapes(params: PretrainParams, tokens: Tokens, sources: Sources) -> dict[Method, Shape]:
    """The shape of each method's model; those of `ntp` and `kd` as wide as `params.match` asks."""
    cocomix = cocomix_shape(params.model, params.cocomix, tokens, sources)
    hidden = params.cocomix.predicts == "hidden"
    target = _cost(CoCoMixConfig(**cocomix), params.match, tokens.context, hidden * sources.base_flops_to_layer)

    def matched(base_flops: int) -> Shape:
        def cost(model: ModelParams) -> int:
            config = GPT2Config(**gpt2_shape(model, tokens))
            return _cost(config, params.match, tokens.context, base_flops)

        return gpt2_shape(params.model if params.match == "width" else widened(params.model, cost, target), tokens)

    return {
        "ntp": matched(0),
        "kd": matched(sources.base_flops),
        "pause": pause_shape(params.model, params.pause, tokens),
        "cocomix": cocomix,
    }


def widened(model: ModelParams, cost: Callable[[ModelParams], int], target: int) -> ModelParams:
    """`model` at the width whose cost is nearest to `target`.

    Heads have a dimension that is a multiple of 8, from half to twice what it is in `model` and as near to it as the
    width allows; widths that allow none are left out.

    Args:
        cost: rises with the width.
    """
    usual = model.d_model // model.n_head
    allowed = [each for each in range(8, max(8, 2 * usual) + 1, 8) if 2 * each >= usual]
    dims = sorted(allowed, key=lambda each: abs(each - usual))

    def at(width: int) -> ModelParams:
        dim = next(each for each in dims if width % each == 0)
        return model.model_copy(update={"d_model": width, "n_head": width // dim})

    most = 8 * dims[0]
    while cost(at(most)) < target:
        most *= 2
    widths = [each for each in range(8, most + 1, 8) if any(each % dim == 0 for dim in dims)]
    above = bisect_left(widths, target, key=lambda each: cost(at(each)))
    return min(map(at, widths[max(0, above - 1) : above + 1]), key=lambda each: abs(cost(each) - target))


def config_of(shape: Shape) -> GPT2Config:
    """The configuration of a shape, with this machine's attention."""
    kind = CoCoMixConfig if "concept_layer" in shape else GPT2Config
    return kind(**shape, attn_implementation=attention(shape["n_positions"]))


def _cost(config: GPT2Config, match: Match, context: int, base_flops: int) -> int:
    if match == "flops":
        return 3 * flops_per_token(config, context) + base_flops
    counted = parameters_of(config)
    return counted.active if match == "active" else counted.stored
