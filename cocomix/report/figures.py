"""The figures of the report."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from cocomix.report.comparison import BASELINE, MethodResult, TaskResult
from cocomix.report.drawing import INK, MUTED, Drawing, Look, drawing
from cocomix.report.efficiency import reach
from cocomix.report.facts import Curve, MixingFacts, TrainingCurve
from cocomix.report.wording import PREFIXES, inside, name_of, power_of_1000, signed
from cocomix.statistics import Interval

Axis = Literal["tokens", "flops", "seconds"]
_EARLY = 1 / 3
"""Share of training after which losses set the upper limit of the axis; earlier, larger losses would hide the rest."""


_THOUSANDS = ("", " (thousands)", " (millions)", " (billions)", " (trillions)")
"""Units of an axis of tokens, by power of 1000."""
_LABEL = 20
"""Maximum characters per line of a row's label."""


class _Scale(NamedTuple):
    """An axis of training cost."""

    label: str
    unit: float
    """Value that corresponds to 1 on the axis."""


def learning_curves(results: Sequence[MethodResult], against: Axis, looks: Mapping[str, Look]) -> str:
    """Validation loss against training cost so far: means over the seeds, with bands from lowest to highest.

    A thin line is the same curve shifted by the cost of supervision.
    """
    scale = _scale(results, against)
    losses = [f"{name_of(each.method)} {_mean(each).loss[-1]:.3f}" for each in results]
    title = f"Validation loss against {scale.label}. At the end: {', '.join(losses)}."
    baseline = next((result for result in results if result.method == BASELINE), None)
    with drawing(against, title, 3.3, 2.8) as made:
        axes = made.axes
        for result in results:
            curve, look = _mean(result), looks[result.method]
            color = look.color
            spent = _spent(curve, against) / scale.unit
            marker = look.marker if len(spent) == 1 else None
            axes.plot(spent, curve.loss, marker=marker, linestyle=look.line, color=color, linewidth=1.8)
            if len(result.runs) > 1:
                by_seed = np.stack([run.curve.loss for run in result.runs])
                axes.fill_between(spent, by_seed.min(0), by_seed.max(0), color=color, alpha=0.2, linewidth=0)
            if supervision_cost := _supervision_cost(result, against):
                axes.plot(spent + supervision_cost / scale.unit, curve.loss, color=color, linewidth=0.8, alpha=0.8)
            if baseline and result.saving and result.saving.spent:
                _mark_reach(axes, curve, _mean(baseline), against, scale.unit)
        _limit(axes, results)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(scale.label)
        axes.set_ylabel("validation loss (nats a token)")
        axes.grid(visible=True)
    return made.svg


def training_curve(name: str, curve: TrainingCurve, what: str) -> str:
    """A training curve of the base model or the autoencoder; empty if it was not trained here.

    Args:
        name: unique on the page.
        what: name of the vertical axis.
    """
    if not curve.tokens.size:
        return ""
    power = power_of_1000(float(curve.tokens[-1]))
    unit, last = 1000.0**power, float(curve.values[-1])
    title = f"{what.capitalize()} against training tokens. At the end: {last:.3f}."
    with drawing(name, title, 3.3, 2.8) as made:
        axes = made.axes
        marker = "o" if len(curve.tokens) == 1 else None
        axes.plot(curve.tokens / unit, curve.values, marker=marker, color=INK, linewidth=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(f"training tokens{_THOUSANDS[power]}")
        axes.set_ylabel(what)
        axes.set_xlim(left=0)
        axes.grid(visible=True)
    return made.svg


def differences(results: Sequence[MethodResult], looks: Mapping[str, Look]) -> str:
    """Differences in loss from the baseline on each corpus, with intervals; empty if there are none."""
    corpora = list(results[0].corpora)
    found = {
        result.method: [result.corpora[corpus].verdict.difference for corpus in corpora]
        for result in results
        if result.method != BASELINE
    }
    stated = [
        f"{name_of(method)} on {corpus} {each.mean:+.3f}"
        for method, intervals in found.items()
        for corpus, each in zip(corpora, intervals, strict=True)
        if each
    ]
    if not stated:
        return ""
    title = f"Difference in loss from {inside(BASELINE)}, nats a token: {', '.join(stated)}."
    with _dots("differences", title, corpora, found, looks) as made:
        axes = made.axes
        axes.axvline(0, color=MUTED, linewidth=0.9)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(round(value, 9), "g")))
        axes.set_xlabel("difference in loss (nats a token)")
    return made.svg


def accuracies(results: Sequence[MethodResult], looks: Mapping[str, Look]) -> str:
    """The accuracy of each method in each task, with standard errors; empty if no task has an accuracy."""
    tasks = [name for name, each in results[0].tasks.items() if each.kind == "accuracy"]
    if not tasks:
        return ""
    stated = [
        f"{task}: {', '.join(f'{name_of(each.method)} {each.tasks[task].value.mean:.1%}' for each in results)}"
        for task in tasks
    ]
    found = {result.method: [_with_error(result.tasks[task]) for task in tasks] for result in results}
    with _dots("tasks", f"Accuracy in tasks. {'; '.join(stated)}.", tasks, found, looks) as made:
        made.axes.xaxis.set_major_locator(MaxNLocator(5))
        made.axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
        made.axes.set_xlabel("accuracy")
    return made.svg


def _with_error(task: TaskResult) -> Interval:
    mean, error = task.value.mean, task.standard_error or 0.0
    return Interval(mean, mean - error, mean + error).within(0, 1)


@contextmanager
def _dots(
    name: str,
    title: str,
    rows: Sequence[str],
    found: Mapping[str, Sequence[Interval | None]],
    looks: Mapping[str, Look],
) -> Iterator[Drawing]:
    """A `drawing` with a line from low to high per row and method, a marker at the mean, and a legend."""
    labels = [textwrap.fill(row.replace("_", " "), _LABEL) for row in rows]
    height = max(0.2 * (1 + len(found)), 0.18 * max(label.count("\n") + 2 for label in labels))
    with drawing(name, title, 4.8, 0.75 + 0.2 * len(found) + height * len(rows)) as made:
        axes = made.axes
        for number, (method, intervals) in enumerate(found.items()):
            look, shift = looks[method], 0.7 * ((number + 0.5) / len(found) - 0.5)
            for row, each in enumerate(intervals):
                if each:
                    axes.plot([each.low, each.high], [row + shift] * 2, color=look.color, linewidth=1.6)
                    axes.plot([each.mean], [row + shift], look.marker, color=look.color, markersize=5.5)
            axes.plot([], [], look.marker + "-", color=look.color, markersize=5.5, label=name_of(method))
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=True, axis="x")
        axes.spines["left"].set_visible(False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        yield made


def loss_given_labels(method: str, mixing: MixingFacts, look: Look) -> str:
    """The loss of a model by the number of labels supplied to it."""
    fall = f"from {mixing.fed_by_uncertainty[0]:.3f} to {mixing.fed_by_uncertainty[-1]:.3f}"
    title = f"Loss of {name_of(method)} when the labels of each position are fed, one by one: {fall} nats a token."
    with drawing(f"fed-{method}", title, 4.0, 2.7) as made:
        axes, color = made.axes, look.color
        count = len(mixing.fed_by_uncertainty) - 1
        axes.plot(range(count + 1), mixing.fed_by_uncertainty, "o-", color=color, label="least certain first")
        axes.plot(range(count + 1), mixing.fed_at_random, "s:", color=MUTED, label="in random order")
        axes.plot([count], [mixing.fed_others], "x", color=INK, label="other text's labels", markersize=7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("labels fed at each position")
        axes.set_ylabel("loss (nats a token)")
        axes.margins(y=0.12)
        axes.grid(visible=True)
        axes.legend(frameon=False)
    return made.svg


def _scale(results: Sequence[MethodResult], against: Axis) -> _Scale:
    last = max(float(_spent(run.curve, against)[-1]) for result in results for run in result.runs)
    power = power_of_1000(last)
    match against:
        case "tokens":
            return _Scale(f"training tokens{_THOUSANDS[power]}", 1000.0**power)
        case "flops":
            return _Scale(f"training compute ({PREFIXES[power]}FLOP)", 1000.0**power)
        case "seconds":
            units = ((3600.0, "hours"), (60.0, "minutes"))
            unit, name = next(((unit, name) for unit, name in units if last > 2 * unit), (1.0, "seconds"))
            return _Scale(f"training time ({name})", unit)


def _spent(curve: Curve, against: Axis) -> NDArray[np.float64]:
    spent: NDArray[np.float64] = getattr(curve, against)
    return spent


def _supervision_cost(result: MethodResult, against: Axis) -> float:
    match against:
        case "tokens":
            return 0.0
        case "flops":
            return result.supervision_cost.flops
        case "seconds":
            return result.supervision_cost.seconds or 0.0


def _mean(result: MethodResult) -> Curve:
    """The mean curve over the seeds, whose points are at the same tokens."""
    return Curve(*(np.mean(each, axis=0) for each in zip(*(run.curve for run in result.runs), strict=True)))


def _mark_reach(axes: Axes, curve: Curve, baseline: Curve, against: Axis, unit: float) -> None:
    """Draw a thin line from the end of the baseline's curve to where this curve reaches its loss."""
    end, loss = _spent(baseline, against)[-1] / unit, float(baseline.loss[-1])
    if found := reach(curve, loss):
        start = getattr(found, against) / unit
        axes.plot([start, end], [loss, loss], "-", color=MUTED, linewidth=0.6)
        axes.plot([start], [loss], "o", color=INK, markersize=3.5)


def _limit(axes: Axes, results: Sequence[MethodResult]) -> None:
    curves = [run.curve for result in results for run in result.runs]
    losses = np.concatenate([each.loss[each.tokens >= _EARLY * each.tokens[-1]] for each in curves])
    margin = 0.06 * float(np.ptp(losses)) or 0.1
    axes.set_ylim(losses.min() - margin, losses.max() + margin)
    axes.set_xlim(left=0)
