"""Format figures for people, and write the conclusions in sentences."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cocomix.params import (
    AttributionParams,
    CocomixParams,
    KdParams,
    Method,
    Params,
    PretrainParams,
    ScheduleParams,
    distillation,
    regresses,
)
from cocomix.report.comparison import BASELINE, MethodResult
from cocomix.report.efficiency import Spread, TrainingToReach
from cocomix.report.tuning import Trial, Tuning
from cocomix.statistics import CONFIDENCE, Interval
from cocomix.tokens.visible import is_visible, with_symbols

NAMES: dict[Method, str] = {
    "ntp": "Next-token prediction",
    "kd": "Knowledge distillation",
    "pause": "Pause tokens",
    "mtp": "Multi-token prediction",
    "cocomix": "CoCoMix",
}


def name_of(method: str) -> str:
    """The name of a method for people; a form's is its own."""
    return NAMES.get(method, method)  # type: ignore[call-overload]


def subject(method: str) -> str:
    """A method's name at the beginning of a sentence."""
    return NAMES.get(method, f'The form "{method}"')  # type: ignore[call-overload]


PREFIXES = ("", "k", "M", "G", "T", "P", "E")
"""SI prefixes, by power of 1000."""


def power_of_1000(value: float) -> int:
    """The largest power of 1000 that is at most `value` and has a prefix."""
    return min(len(PREFIXES) - 1, int(math.log10(abs(value)) // 3)) if abs(value) >= 1 else 0


def si(value: float, unit: str = "") -> str:
    """Three digits and a prefix, without a line break: `3.07 M`, `45.6 TFLOP`."""
    power = power_of_1000(value)
    scaled = value / 1000**power
    if round(scaled) >= 1000 and power < len(PREFIXES) - 1:
        scaled, power = scaled / 1000, power + 1
    digits = max(0, 2 - int(math.log10(abs(scaled)))) if abs(scaled) >= 1 else 2
    number = f"{scaled:.{digits}f}" if power or scaled != int(scaled) else str(int(scaled))
    return f"{number}\N{NO-BREAK SPACE}{PREFIXES[power]}{unit}".rstrip()


def duration(seconds: float) -> str:
    """`42 s`, `5.5 min` or `3.2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def over_seeds(value: Spread, form: str) -> str:
    """The mean, with minimum and maximum if they differ: `4.412 (4.401 to 4.420)`."""
    mean, low, high = (format(each, form) for each in value)
    return mean if low == high else f"{mean} ({low} to {high})"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align cells in columns, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(map(str.rstrip, lines))


def listing(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


class Answer(NamedTuple):
    """The gain of a method over the baseline, and its cost."""

    headline: str
    details: str


def signed(value: float, form: str) -> str:
    """Format with a sign, except for zero, and a minus as wide as a plus: `+0.25`, `0.00`."""
    shown = format(value, f"+{form}")
    return shown.replace("-", "\N{MINUS SIGN}") if float(shown) else shown[1:]


def within(interval: Interval, form: str, factor: float = 1) -> str:
    """The ends of an interval, times `factor`: `−0.101 to −0.078`."""
    return f"{signed(factor * interval.low, form)} to {signed(factor * interval.high, form)}"


def answers(results: Sequence[MethodResult]) -> list[Answer]:
    """An answer for each method but the baseline, CoCoMix first; without a baseline, one answer for all."""
    baseline = next((each for each in results if each.method == BASELINE), None)
    if baseline:
        others = [each for each in results if each is not baseline]
        if not others:
            return []
        answers = [_answer(each, baseline) for each in sorted(others, key=lambda each: each.method != "cocomix")]
        best = min(results, key=_test_loss)
        if len(others) > 1:
            lowest = f"The lowest test loss of all is that of {inside(best.method)}, {_test_loss(best):.3f}."
            answers[0] = answers[0]._replace(details=f"{answers[0].details} {lowest}")
        return answers
    if len(results) == 1:
        return []
    best, *rest = sorted(results, key=_test_loss)
    losses = ", ".join(f"{inside(each.method)} at {_test_loss(each):.3f}" for each in rest)
    return [
        Answer(
            f"{subject(best.method)} ended at a test loss of {_test_loss(best):.3f}, {losses}.",
            f"{name_of(BASELINE)}, with which they would be compared, was not trained.",
        )
    ]


def one_seed(results: Sequence[MethodResult]) -> str:
    """A sentence on what the intervals of a single seed leave out; empty: there are several seeds."""
    if len(results[0].runs) > 1:
        return ""
    about = ": its intervals are about which documents are read, not about other seeds or other machines"
    return f"This is one seed{about if len(results) > 1 else ''}."


def _answer(result: MethodResult, baseline: MethodResult) -> Answer:
    name, other = subject(result.method), inside(BASELINE)
    saving, ours, theirs = result.saving, result.runs[0].training, baseline.runs[0].training
    assert saving is not None
    cost = ours.flops_per_token / theirs.flops_per_token
    compute = f"{name} needs {cost:.2f} times the training FLOPs per token"
    if saving.spent:
        headline = (
            f"{name} reached the final validation loss of {other} after {si(saving.spent.tokens.mean)} of "
            f"{si(theirs.tokens)} tokens, {saving.spent.tokens_saved.mean:.0%} fewer."
        )
        compute += f", and had spent {saving.spent.flops_ratio.mean:.2f} times the compute of {other} by then"
        compute += _with_supervision(result, saving.spent)
    elif saving.reached == saving.seeds:
        headline = (
            f"{name} reached the final validation loss of {other} before its first evaluation, so the number of "
            "tokens was not measured."
        )
    elif saving.reached:
        headline = (
            f"{name} reached the final validation loss of {other} in only {saving.reached} of {saving.seeds} seeds."
        )
    else:
        headline = f"{name} did not reach the final validation loss of {other}."
    return Answer(headline, f"{compute}. {_last(result, baseline)}")


def _with_supervision(result: MethodResult, spent: TrainingToReach) -> str:
    if not result.supervision_cost.flops:
        return ""
    parts = {"base": "the base model", "sae": "the autoencoder", "attribution": "the labels"}
    parts |= {"distribution": "the sampled distribution"}
    made = [part for stage, part in parts.items() if stage in result.sources]
    return f"; {spent.flops_ratio_with_supervision.mean:.2f} times including {listing(made)}"


def _last(result: MethodResult, baseline: MethodResult) -> str:
    gap = _test_loss(result) - _test_loss(baseline)
    interval = result.corpora["test"].verdict.difference
    # A digit more than the losses have, so that theirs do not seem to contradict it.
    lower = f"{abs(gap):.4f} nats {'lower' if gap < 0 else 'higher'}"
    if interval:
        verdict = "" if interval.excludes_zero else ", so that it may be none"
        lower += f" ({CONFIDENCE:.0%} interval of the difference: {within(interval, '.3f')}{verdict})"
    against = f"{_test_loss(result):.3f} against {_test_loss(baseline):.3f}"
    return f"After {si(result.runs[0].training.tokens)} tokens its test loss is {against}, {lower}."


def lowest(results: Sequence[MethodResult]) -> str:
    """The gap between the lowest loss on each text and those of the other methods, as far as the table lacks it.

    The table compares with the baseline only, so the result may be empty.
    """
    said = []
    for corpus in results[0].corpora:
        for result in results:
            gaps = result.corpora[corpus].verdict.differences.items()
            others = [
                f"{signed(gap.mean, '.3f')} ({within(gap, '.3f')}) from {inside(method)}"
                for method, gap in gaps
                if gap and BASELINE not in (method, result.method)
            ]
            if others:
                said.append(f"The lowest loss on {corpus} is that of {inside(result.method)}: {', '.join(others)}.")
    return " ".join(said)


def _test_loss(result: MethodResult) -> float:
    return result.corpora["test"].loss.mean


def caveats(results: Sequence[MethodResult], pretrain: PretrainParams, tuned: Tuning | None) -> str:
    """Notes on all answers: how certain they are, which costs they include, how settings differ from the paper."""
    count, methods = len(results[0].runs), [each.method for each in results]
    about = ", intervals are about other documents and other seeds" if len(results) > 1 else ""
    chance = one_seed(results) or f"These are means of {count} seeds: ranges are from the lowest to the highest{about}."
    chosen = ["Loss weights were compared on the validation split; the final losses are of the test split."]
    return " ".join(
        [
            chance,
            *(chosen if tuned and tuned.compares else []),
            *_counted(methods, pretrain),
            *_settings(methods, pretrain),
        ]
    )


def _counted(methods: Sequence[str], pretrain: PretrainParams) -> list[str]:
    """What the training compute of methods includes besides their own models."""
    sections = {method: pretrain.section(method) for method in methods}
    taught = {method: distillation(section) for method, section in sections.items()}
    whole = [method for method, params in taught.items() if params and params.source == "online"]
    to_layer = [method for method, section in sections.items() if regresses(section)]
    labelled = [
        method for method, section in sections.items() if isinstance(section, CocomixParams) and section.uses_labels
    ]
    drawn = [method for method, params in taught.items() if params and params.source == "cached"]
    said = {
        "includes the base model's forward pass": whole,
        "includes the base model's forward pass to the regressed layer": to_layer,
        "excludes the cost of the concept labels unless stated": labelled,
        "excludes the cost of the sampled distribution unless stated": drawn,
    }
    return [f"The training compute of {listing(map(inside, some))} {what}." for what, some in said.items() if some]


def _weight(kd: KdParams) -> str:
    """The weight of distillation, and whether it is constant."""
    return f"{kd.kl_weight:g}" + (", which changes over the steps" if kd.schedule != ScheduleParams() else "")


def _settings(methods: Sequence[str], pretrain: PretrainParams) -> list[str]:
    """Weights of the losses and initialisation of the head, compared with the paper's."""
    said, cocomix = [], pretrain.cocomix
    if "cocomix" in methods and cocomix.predicts != "nothing":
        what = "concept loss" if cocomix.predicts == "concepts" else "distance"
        said.append(f"CoCoMix weighs its {what} by {cocomix.concept_weight:g} (paper: 0.1).")
        if cocomix.predicts == "concepts" and cocomix.concept_init == "tied":
            said.append("Its head starts tied (released code: from a normal distribution).")
    if "kd" in methods:
        said.append(f"Knowledge distillation weighs the divergence by {_weight(pretrain.kd)} (paper: 0.1).")
    if "mtp" in methods:
        said.append(f"Multi-token prediction weighs further tokens by {pretrain.mtp.weight:g} (paper: 1).")
    return said


def matching(results: Sequence[MethodResult], pretrain: PretrainParams) -> str:
    """Sentences about the models' widths and attention heads, how they were matched, and where they started."""
    trained = {each.method: each.runs[0].training for each in results}
    init = pretrain.init
    start = f"All go on from the pretrained model {init.path}. " if init.source == "pretrained" else ""
    sizes = {method: f"{each.d_model}, in {each.n_head} heads" for method, each in trained.items()}
    matched = [method for method in sizes if method in ("ntp", "kd", "mtp")]
    if pretrain.match == "width" or not matched:
        width = next(iter(trained.values()))
        all_of = "all models" if len(trained) > 1 else "the model"
        return f"{start}The hidden states of {all_of} are {width.d_model} wide, in {width.n_head} heads."
    alike = {
        "stored": "stored parameters",
        "active": "active parameters",
        "flops": "training FLOPs per token",
    }[pretrain.match]
    listed = listing(f"{inside(method)} ({sizes[method]})" for method in matched)
    own = f" ({sizes['cocomix']})" if "cocomix" in sizes else f" of width {pretrain.model.d_model}, not trained here"
    return f"Models of {listed} have the hidden width that matches the {alike} of CoCoMix{own}."


def labels(attribution: AttributionParams) -> str:
    """Phrase: which of a position's concepts are its labels."""
    if attribution.score == "activation":
        return "those that are most active"
    change = {"released": "lower", "helpful": "raise", "absolute": "change"}[attribution.sign]
    sign = " (attribution.sign is that of the paper's code)" if attribution.sign == "released" else ""
    where = {"sequence": "the text that follows", "next_token": "the next token"}[attribution.scope]
    return f"those whose absence would most {change} the base model's loss on {where}{sign}"


def labels_may_hurt(attribution: AttributionParams) -> bool:
    """Whether labels are concepts with which the base model predicts the text worse."""
    return attribution.score != "activation" and attribution.sign == "released"


def fed_labels(attribution: AttributionParams) -> str:
    """Sentences on how to interpret the loss of a model with labels supplied."""
    if attribution.score == "activation":
        return (
            "They are what the autoencoder finds in the text so far, which the model has read too. The model uses its "
            "concepts if the loss is lower than with other text's labels."
        )
    if labels_may_hurt(attribution):
        return (
            "Without these concepts the base model would predict the following text better, so the loss may well rise. "
            "The model uses its concepts if the loss changes differently than with other text's labels. This does not "
            "show that better predictions of labels would improve the model."
        )
    return (
        "They contain information about the following text. Where the loss falls, the model uses its concepts. This "
        "does not show that better predictions of labels would improve the model."
    )


def visible(token: str) -> str:
    """The text of a token; symbols, if it consists of white space."""
    return token if is_visible(token) else with_symbols(token)


def loss_weight(weight: float | None) -> str:
    """Format the weight of a method's auxiliary loss."""
    return "none" if weight is None else f"{weight:g}"


def tuned_says(tuned: Tuning) -> str:
    """Sentences on whether methods had equal tuning, and whether params.yaml has the best weights tried."""
    grids: dict[str, list[Trial]] = {}
    for each in tuned.trials:
        if each.weight is not None:
            grids.setdefault(each.method, []).append(each)
    said = []
    if len(grids) > 1 and tuned.compares:
        alike = len({tuple(each.weight for each in trials) for trials in grids.values()}) == 1
        more = "" if len(set(map(len, grids.values()))) == 1 else ": one had more chances"
        said.append(f"The grid of {listing(map(inside, grids))} is {'the same' if alike else f'not the same{more}'}.")
    if tuned.others:
        counts = listing(f"{count} of {inside(method)}" for method, count in tuned.others.items())
        said.append(f"Settings that differ in more than the weight were tried too: {counts}.")
    for method, trials in grids.items():
        best = next((each for each in trials if each.lowest), None)
        if best and not best.used:
            said.append(
                f"The lowest loss of {inside(method)} is with {best.weight:g}, which is not the weight in params.yaml."
            )
    if not tuned.same_code:
        said.append("Not all of these runs were made by the same version of the code.")
    return " ".join(said)


def variant(cocomix: CocomixParams) -> str:
    """How this CoCoMix differs from the released code; empty: in nothing that changes the method."""
    differs = [
        (cocomix.predicts == "hidden", f"it predicts the base model's hidden state ({cocomix.hidden_loss} distance)"),
        (cocomix.mixing == "none", "it predicts concepts but mixes nothing"),
        (cocomix.mixing == "add", "the prediction is added to the token's state, not interleaved"),
        (cocomix.mixing == "interleave_with_state", "the interleaved position also holds the token's state"),
        (cocomix.predicts == "nothing", "an MLP without a loss of its own replaces the concepts"),
        (cocomix.gate, "a learned number, initially 0, multiplies the mixed vector"),
        (cocomix.forces_labels, f"true labels are fed in {cocomix.teacher_forcing:.0%} of the training windows"),
        (cocomix.labels == "shuffled", "each window has the labels of another one"),
        (cocomix.label_weights == "score", "labels weigh by their scores"),
        (cocomix.label_offsets != [0], f"it learns the labels of the positions at {cocomix.label_offsets}"),
        (cocomix.concept_schedule != ScheduleParams(), "the weight of the concept loss changes over the steps"),
        (cocomix.kd.kl_weight > 0, f"distillation is added with weight {_weight(cocomix.kd)}"),
        (cocomix.learned_scale, "a learned number scales the mixed vector"),
        (not cocomix.concept_weight, "the loss of its prediction has weight 0"),
        (cocomix.stop_gradient, "the language model's loss has no gradient through the prediction"),
        (cocomix.concept_head == "equations", "its head neither normalises nor rescales"),
    ]
    return "; ".join(text for holds, text in differs if holds)


def forms_say(pretrain: PretrainParams) -> list[str]:
    """A sentence for each listed form: in which parameters it differs from `pretrain.cocomix`."""
    forms, said = _changes_of_forms(pretrain), []
    for name in pretrain.methods:
        if name in forms:
            changes = ", ".join(
                f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in forms[name].items()
            )
            said.append(f"{subject(name)} is CoCoMix {f'with {changes}' if changes else 'as it is'}.")
    return said


def changed(params: Params, shipped: Params) -> list[tuple[str, str, str]]:
    """The parameters that differ from the shipped ones: key, value and shipped value, as JSON; null: not there."""
    return [
        (key, json.dumps(own, ensure_ascii=False), json.dumps(value, ensure_ascii=False))
        for key, own, value in _differences(_as_written(params), _as_written(shipped))
    ]


def _as_written(params: Params) -> dict[str, Any]:
    """The parameters as JSON values; a form holds only its changes."""
    values = params.model_dump(mode="json")
    values["pretrain"]["forms"] = _changes_of_forms(params.pretrain)
    return values


def _changes_of_forms(pretrain: PretrainParams) -> dict[str, dict[str, Any]]:
    """For each form, the values that differ from `pretrain.cocomix`, by dotted key."""
    cocomix = pretrain.cocomix.model_dump(mode="json")
    return {
        name: {key: own for key, own, _ in _differences(form.model_dump(mode="json"), cocomix)}
        for name, form in pretrain.forms.items()
    }


def _differences(
    params: Mapping[str, Any], others: Mapping[str, Any], before: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key and both values where nested mappings differ; None stands for a missing value."""
    for key in {**others, **params}:
        own, other = params.get(key), others.get(key)
        if isinstance(other, Mapping) and isinstance(own, Mapping):
            yield from _differences(own, other, f"{before}{key}.")
        elif own != other:
            yield f"{before}{key}", own, other


def inside(method: str) -> str:
    """A method's name inside a sentence."""
    name = name_of(method)
    return name if method == "cocomix" else name.lower()
