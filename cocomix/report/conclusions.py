"""What the figures of the report support, in sentences, also where it is unwelcome.

Each conclusion is a function of the figures that it rests on. A loss is in nats per token.
"""

from collections.abc import Sequence

from cocomix.params import AttributionParams, CocomixParams, PretrainParams
from cocomix.report.comparison import BASELINE, MethodResult
from cocomix.report.concepts import mean_concepts
from cocomix.report.documents import difference
from cocomix.report.facts import Pipeline
from cocomix.report.wording import inside, labels_may_hurt, name_of, subject, within
from cocomix.statistics import CONFIDENCE, Interval
from cocomix.steering.averages import Sweep

EQUAL = 0.01
"""Differences between losses of one model that are at most this large count as none: nats per token."""
SAME_COST = 0.05
"""Share of the baseline's compute by which two costs differ at most to count as equal."""
HARDLY = 0.6
"""AUC up to which a label in the atlas hardly tells where its concept fires; chance is 0.5."""


def conclusions(
    results: Sequence[MethodResult],
    pretrain: PretrainParams,
    attribution: AttributionParams,
    pipeline: Pipeline,
    sweeps: Sequence[Sweep],
) -> list[str]:
    """All conclusions of a run, those on the comparison first."""
    by_method = {each.method: each for each in results}
    cocomix, baseline = by_method.get("cocomix"), by_method.get(BASELINE)
    said = []
    for result in results:
        section = pretrain.section(result.method)
        if cocomix and result not in (cocomix, baseline) and (gap := _gap(cocomix, result)):
            is_cocomix = isinstance(section, CocomixParams)
            only_predicts = is_cocomix and section == pretrain.cocomix.model_copy(update={"mixing": "none"})
            said.append(mixing(gap, result.method) if only_predicts else against("cocomix", result.method, gap))
    for result in results:
        if result.saving and result.saving.spent and result.supervision_cost.flops:
            said.append(whole_cost(result.method, result.saving.spent.flops_ratio_with_supervision.mean))
    for result in results:
        if result.concepts:
            concepts = mean_concepts(result.concepts)
            said.append(prediction(result.method, concepts.cross_entropy, pipeline.attribution.frequency_loss))
            if mixed := concepts.mixing:
                said.append(mixture(result.method, mixed.as_it_is, mixed.shuffled))
                fed, others = mixed.fed_by_uncertainty[-1], mixed.fed_others
                said.append(use_of_labels(result.method, fed, others, labels_may_hurt(attribution)))
    said += [steered(each.name.removesuffix("_set"), each) for each in sweeps if each.name.endswith("_set")]
    said.append(atlas_labels(pipeline.explain.auc))
    return said


def against(method: str, other: str, gap: Interval) -> str:
    """Whether a method ends at a lower test loss than another.

    Args:
        gap: the method's loss minus the other's.
    """
    first, second = subject(method), inside(other)
    if not gap.excludes_zero:
        return f"{first} and {second} end at test losses that these documents do not tell apart ({_interval(gap)})."
    if gap.mean < 0:
        return f"{first} ends at a lower test loss than {second}, by {-gap.mean:.3f} nats ({_interval(gap)})."
    return (
        f"{subject(other)} is ahead of {inside(method)}: its test loss is {gap.mean:.3f} nats lower ({_interval(gap)})."
    )


def mixing(gap: Interval, predicting: str) -> str:
    """Whether mixing concepts into the hidden states improves on predicting them.

    Args:
        gap: the loss of CoCoMix minus that of the form that only predicts.
        predicting: the name of that form.
    """
    if not gap.excludes_zero:
        return (
            "Mixing concepts in makes no difference to the test loss that these documents show: CoCoMix minus "
            f"{predicting}, which only predicts them, is within {within(gap, '.3f')} nats."
        )
    if gap.mean < 0:
        return f"Mixing concepts in helps: it lowers the test loss by {-gap.mean:.3f} nats ({_interval(gap)})."
    return (
        f"Predicting concepts without mixing them in is better than CoCoMix: the test loss of {predicting} is "
        f"{gap.mean:.3f} nats lower ({_interval(gap)})."
    )


def whole_cost(method: str, ratio: float) -> str:
    """Whether a method saves compute once its supervision counts, by more than `SAME_COST`.

    Args:
        ratio: compute to reach the baseline's final loss, supervision included, over the baseline's.
    """
    name, other = subject(method), inside(BASELINE)
    if abs(ratio - 1) <= SAME_COST:
        return (
            f"{name} takes about the same compute as {other} for the same loss, once its supervision counts: "
            f"{ratio:.2f} times as much."
        )
    if ratio < 1:
        return f"{name} saves compute, even with its supervision: {ratio:.2f} times that of {other} for the same loss."
    return (
        f"{name} saves no compute once its supervision counts: {ratio:.2f} times that of {other} for the same loss. "
        "More runs from the same supervision would share its cost."
    )


def prediction(method: str, cross_entropy: float, frequency_loss: float) -> str:
    """Whether a model predicts its labels better than their frequencies do."""
    figures = f"cross-entropy {cross_entropy:.2f}, by frequency alone {frequency_loss:.2f} nats"
    if cross_entropy < frequency_loss - EQUAL:
        return f"{subject(method)} predicts concepts from the text ({figures})."
    return f"{subject(method)} predicts concepts no better than their frequencies do ({figures})."


def mixture(method: str, own: float, others: float) -> str:
    """Whether what a model mixes in carries information about its text.

    Args:
        own: its loss.
        others: its loss with what belongs to other text mixed in.
    """
    figures = f"loss {own:.3f}, with the concepts of other text {others:.3f}"
    if others - own > EQUAL:
        return f"{subject(method)} needs the concepts that it mixes in ({figures})."
    return f"{subject(method)} does not need the concepts that it mixes in ({figures})."


def use_of_labels(method: str, own: float, others: float, may_hurt: bool) -> str:
    """Whether a model reads the labels that are fed to it.

    Args:
        own: its loss with the labels of its text fed in.
        others: its loss with those of another text.
        may_hurt: whether a loss that rises shows that the model uses them: see `labels_may_hurt`.
    """
    figures = f"loss {own:.3f} with its text's labels, {others:.3f} with another text's"
    if abs(own - others) <= EQUAL:
        return f"{subject(method)} does not use labels that are fed to it ({figures})."
    if own > others and not may_hurt:
        return f"{subject(method)} does not benefit from labels that are fed to it, which raise its loss ({figures})."
    return f"{subject(method)} uses labels that are fed to it ({figures})."


def steered(method: str, sweep: Sweep) -> str:
    """Whether the strongest edit of a concept raises its own tokens, and more than the edits of other concepts do."""
    last = sweep.effects[-1]
    name = "the base model" if method == "base" else name_of(method)
    own, gap = last.log_ratio.own, last.log_ratio.difference
    if gap.low > 0 and own.low <= 0:
        return (
            f"Raising a concept in {name} keeps its own tokens likelier than raising another one does, but does not "
            f"make them likelier than no edit, as far as the {sweep.concepts} concepts show that were tried."
        )
    if gap.low > 0:
        return f"Raising a concept in {name} makes its own tokens likelier, more than raising another one does."
    return (
        f"Raising a concept in {name} makes its own tokens no likelier than raising another one does, as far as the "
        f"{sweep.concepts} concepts show that were tried."
    )


def atlas_labels(auc: float) -> str:
    """Whether the labels in the atlas tell where their concepts fire."""
    if auc > HARDLY:
        return f"The labels in the atlas tell where their concepts fire (AUC {auc:.2f}; 0.5: chance)."
    return f"The labels in the atlas hardly tell where their concepts fire (AUC {auc:.2f}; 0.5: chance)."


def _gap(result: MethodResult, other: MethodResult) -> Interval | None:
    own, others = ([run.documents["test"] for run in each.runs] for each in (result, other))
    return difference(own, others, "test")


def _interval(gap: Interval) -> str:
    return f"{CONFIDENCE:.0%} interval {within(gap, '.3f')}"
