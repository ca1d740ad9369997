"""What making the supervision costs: the base model, the autoencoder and the labels that a method learns from.

Training FLOPs of a model do not contain it, since it is paid once, whatever the epochs and however many models learn
from it. Counted as everywhere: matrix products, two operations a multiply-add. With F operations of the base model's
forward pass a token, f of them up to the concepts' layer, width d, C latents and k active ones:

    base         3 F a token that it is trained on; nothing where it comes from elsewhere
    activations  f a stored token; again each epoch where they are not kept
    sae          2 d C + 8 d k a token and epoch: encoder; then decoder and both gradients, of active latents only
    attribution  F forward, F - f backward to the layer, 2 d C encoder, 2 d k slopes, for each training token; with
                 `integrated` forward and backward again each step, with `ablation` F - f for each latent
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from cocomix.params import CocomixParams, Method, Params
from cocomix.report.facts import Pipeline, Usage

Source = Literal["base", "activations", "sae", "attribution"]
SOURCES: tuple[Source, ...] = ("base", "activations", "sae", "attribution")


class Cost(NamedTuple):
    """Work of some stages."""

    flops: float
    seconds: float | None
    """None: a stage did not say."""


def sources_of(method: Method, cocomix: CocomixParams) -> tuple[Source, ...]:
    """The stages that a method needs before its own training."""
    if method == "cocomix" and cocomix.predicts == "concepts" and cocomix.concept_weight:
        return SOURCES
    if method == "kd" or (method == "cocomix" and cocomix.predicts == "hidden"):
        return ("base",)
    return ()


def costs(pipeline: Pipeline, params: Params) -> dict[Source, Cost]:
    """What each of the stages took."""
    flops = _flops(pipeline, params)
    usages: dict[Source, Usage | None] = {
        "base": pipeline.base.usage,
        "activations": pipeline.activations.usage,
        "sae": pipeline.sae.usage,
        "attribution": pipeline.attribution.usage,
    }
    return {each: Cost(flops[each], usage.seconds if usage else None) for each, usage in usages.items()}


def share(all_costs: Mapping[Source, Cost], sources: tuple[Source, ...], runs: int) -> Cost:
    """What one of `runs` models that learn from the same `sources` owes."""
    seconds = [all_costs[each].seconds for each in sources]
    known = [each for each in seconds if each is not None]
    return Cost(
        sum(all_costs[each].flops for each in sources) / runs,
        sum(known) / runs if len(known) == len(seconds) else None,
    )


def _flops(pipeline: Pipeline, params: Params) -> dict[Source, float]:
    lower, upper = pipeline.shapes.base_flops_to_layer, pipeline.shapes.base_flops - pipeline.shapes.base_flops_to_layer
    width, latents, active = pipeline.activations.d_model, pipeline.shapes.latents, pipeline.sae.l0
    encoder = 2 * width * latents
    stored, epochs = pipeline.activations.train_tokens, params.sae.epochs
    trained, section = params.sae.source == "train", params.attribution
    slopes = 2 * width * (latents if section.value == "pre_activation" else active)
    labelled = {  # a token
        "activation": lower + encoder,
        "gradient": lower + encoder + 2 * upper + slopes,
        "integrated": lower + encoder + section.integrated_steps * (lower + 2 * upper) + slopes,
        "ablation": lower
        + encoder
        + (1 + active) * upper * (pipeline.shapes.context if section.scope == "sequence" else 1),
    }
    return {
        "base": pipeline.base.flops,
        "activations": lower * stored * (epochs if trained and not params.activations.keep else 1),
        "sae": (encoder + 8 * width * active) * stored * epochs if trained else 0,
        "attribution": labelled[section.score] * pipeline.tokens.train.tokens,
    }
