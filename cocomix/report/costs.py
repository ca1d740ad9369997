"""The cost of supervision: the base model, the autoencoder, labels and sampled distribution that a method learns from.

A model's training FLOPs exclude it, since it is paid once for all epochs and all models that learn from it.
`cocomix.shapes.label_flops` counts the operations of the autoencoder and the labels. With F the base model's FLOPs per
token in a forward pass, and f those up to the concepts' layer:

    base         3 F per training token; 0 if it was not trained here
    activations  f per stored token; again each epoch if they are not kept
    sae          per stored token and epoch
    attribution  per training token of the base model
    distribution F per training token; 0 without draws
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from cocomix.params import CocomixParams, MethodParams, Params, reads_distribution, runs_base
from cocomix.report.facts import Pipeline, Usage
from cocomix.shapes.label_flops import attribution_flops, sae_flops
from cocomix.shapes.models import TeacherSizes

SupervisionStage = Literal["base", "activations", "sae", "attribution", "distribution"]
SUPERVISION_STAGES: tuple[SupervisionStage, ...] = ("base", "activations", "sae", "attribution", "distribution")


class Cost(NamedTuple):
    """Cost of some stages."""

    flops: float
    seconds: float | None
    """None: a stage did not record its time."""


def supervision_stages(section: MethodParams) -> tuple[SupervisionStage, ...]:
    """The stages that make a method's supervision."""
    needed: set[SupervisionStage] = set()
    if isinstance(section, CocomixParams) and section.uses_labels:
        needed |= {"base", "activations", "sae", "attribution"}
    if runs_base(section):
        needed.add("base")
    if reads_distribution(section):
        needed |= {"base", "distribution"}
    return tuple(each for each in SUPERVISION_STAGES if each in needed)


def costs(pipeline: Pipeline, params: Params) -> dict[SupervisionStage, Cost]:
    """The cost of each stage."""
    flops = _flops(pipeline, params)
    usages: dict[SupervisionStage, Usage | None] = {
        "base": pipeline.base.usage,
        "activations": pipeline.activations.usage,
        "sae": pipeline.sae.usage,
        "attribution": pipeline.attribution.usage,
        "distribution": pipeline.distribution.usage,
    }
    return {each: Cost(flops[each], usage.seconds if usage else None) for each, usage in usages.items()}


def share(all_costs: Mapping[SupervisionStage, Cost], stages: tuple[SupervisionStage, ...], runs: int) -> Cost:
    """The cost share of one model, if `runs` models learn from the same `stages`."""
    seconds = [all_costs[each].seconds for each in stages]
    known = [each for each in seconds if each is not None]
    return Cost(
        sum(all_costs[each].flops for each in stages) / runs,
        sum(known) / runs if len(known) == len(seconds) else None,
    )


def _flops(pipeline: Pipeline, params: Params) -> dict[SupervisionStage, float]:
    sizes, active = pipeline.methods, pipeline.sae.l0
    teacher = TeacherSizes(sizes.concepts, pipeline.activations.d_model, sizes.base_flops, sizes.base_flops_to_layer)
    stored, epochs = pipeline.activations.train_tokens, params.sae.epochs
    trained = params.sae.source == "train"
    read = (pipeline.base_tokens.train or pipeline.tokens.train).tokens
    labelled = attribution_flops(params.attribution, teacher, params.sae.latents, active, sizes.base_context)
    return {
        "base": pipeline.base.flops,
        "activations": teacher.base_flops_to_layer
        * stored
        * (epochs if trained and not params.activations.keep else 1),
        "sae": sae_flops(teacher.base_width, params.sae.latents, active) * stored * epochs if trained else 0,
        "attribution": labelled * read,
        "distribution": teacher.base_flops * pipeline.tokens.train.tokens if params.distribution.draws else 0,
    }
