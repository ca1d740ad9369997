"""Effects of steering, in figures and in sentences."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cocomix.report.drawing import INK, MUTED, Look, drawing
from cocomix.report.wording import name_of, signed
from cocomix.statistics import CONFIDENCE, Interval
from cocomix.steering.averages import MeanEffects, Sweep


class _Drawn(NamedTuple):
    """Names and style of a sweep in figures."""

    title: str
    strength: str
    """Name of its x axis."""
    color: str
    marker: str
    line: str


def _drawn(sweep: Sweep, looks: Mapping[str, Look]) -> _Drawn:
    """How a sweep of the stage `steer` is drawn; it is named by its method, or base, and its edit."""
    method, _, edit = sweep.name.rpartition("_")
    if method == "base":
        return _Drawn("Base model, latent set", "latent", INK, "s", "-")
    if edit == "set":
        return _Drawn(f"{name_of(method)}, strength set", "strength", looks[method].color, "o", "-")
    return _Drawn(f"{name_of(method)}, prediction multiplied", "factor", looks[method].color, "^", "--")


def effects_by_strength(sweeps: Sequence[Sweep], looks: Mapping[str, Look]) -> list[tuple[str, str]]:
    """A titled figure per sweep: the effect of strengths on the tokens of their own concepts, and on those of others.

    All share one range of the vertical axis, so that they can be compared.
    """
    intervals = [each.log_ratio.own for sweep in sweeps for each in sweep.effects]
    low, high = min(each.low for each in intervals), max(each.high for each in intervals)
    margin = 0.05 * (high - low)
    drawn = []
    for sweep in sweeps:
        look, last = _drawn(sweep, looks), sweep.effects[-1].log_ratio
        title = (
            f"{look.title}: tokens of the concept at the {look.strength} {sweep.effects[-1].strength:g} "
            f"{_times(last.own.mean)} as likely, those of other concepts {_times(last.control)}."
        )
        with drawing(sweep.name, title, 3.3, 2.8) as made:
            _draw_effects(made.axes, sweep, look)
            made.axes.set_ylim(low - margin, high + margin)
        drawn.append((look.title, made.svg))
    return drawn


def _draw_effects(axes: Axes, sweep: Sweep, look: _Drawn) -> None:
    strengths, own = [each.strength for each in sweep.effects], [each.log_ratio.own for each in sweep.effects]
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.fill_between(
        strengths, [each.low for each in own], [each.high for each in own], color=look.color, alpha=0.2, linewidth=0
    )
    axes.plot(strengths, [each.log_ratio.control for each in sweep.effects], "x:", color=MUTED, label="other concepts'")
    axes.plot(
        strengths,
        [each.mean for each in own],
        look.marker + "-",
        color=look.color,
        markersize=5,
        label="its own tokens",
    )
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(_signed_ticks())
    axes.yaxis.set_major_formatter(_signed_ticks())
    axes.set_xlabel(look.strength)
    axes.set_ylabel("log of the ratio of probabilities")
    axes.grid(visible=True)
    axes.legend(frameon=False)


def effects_by_cost(sweeps: Sequence[Sweep], looks: Mapping[str, Look]) -> str:
    """The same effects against their cost in loss on text."""
    stated = [
        f"{_drawn(each, looks).title} {each.effects[-1].strength:g}: {_times(each.effects[-1].log_ratio.own.mean)} "
        f"for {each.effects[-1].loss.mean:+.2f}"
        for each in sweeps
    ]
    title = f"Effect on the concept's tokens against the change of the loss. {'; '.join(stated)}."
    with drawing("steering-cost", title, 4.0, 3.2) as made:
        axes = made.axes
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for sweep in sweeps:
            look = _drawn(sweep, looks)
            loss = [each.loss.mean for each in sweep.effects]
            effect = [each.log_ratio.own.mean for each in sweep.effects]
            axes.plot(loss, effect, look.line, color=look.color, linewidth=1, alpha=0.6)
            for each in sweep.effects:
                faces = look.color if each.strength > 0 else "none"
                axes.plot(each.loss.mean, each.log_ratio.own.mean, look.marker, color=look.color, markerfacecolor=faces)
            axes.plot([], [], look.line, marker=look.marker, color=look.color, label=look.title)
        axes.xaxis.set_major_formatter(_signed_ticks())
        axes.yaxis.set_major_formatter(_signed_ticks())
        axes.set_xlabel("change of the loss on text (nats a token)")
        axes.set_ylabel("log of the ratio of probabilities")
        axes.grid(visible=True)
        axes.legend(frameon=False, fontsize=9)
    return made.svg


def steering_says(sweeps: Sequence[Sweep]) -> list[str]:
    """The effects of the strongest edits, in a sentence or two per method and for the base model."""
    said, methods = list[str](), [each.name.removesuffix("_set") for each in sweeps if each.name.endswith("_set")]
    by_name = {each.name: each for each in sweeps}
    for method in methods:
        last = by_name[f"{method}_set"].effects[-1]
        what = "With its strength" if methods == [method, "base"] else f"In {name_of(method)}, with its strength"
        if method == "base":
            what = "In the base model, through its autoencoder, with its latent"
        said.append(
            f"{what} set to {last.strength:g} at every position, a concept's tokens become "
            f"{_times(last.log_ratio.own.mean)} as likely ({_within(last.log_ratio.own)}; other concepts' tokens "
            f"{_times(last.log_ratio.control)}), and the loss on text changes by {signed(last.loss.mean, '.2f')} nats."
        )
        first = by_name[f"{method}_scale"].effects[0] if method != "base" else last
        if first.strength < 0 and first.log_ratio.own.low > 0:
            said.append(
                f"Multiplied by {signed(first.strength, 'g').lstrip('+')} before the selection, as the paper steers, "
                f"a concept comes in wherever its prediction was negative: its tokens become more likely "
                f"({_times(first.log_ratio.own.mean)}), not less."
            )
    return said


def steering_rows(sweeps: Sequence[Sweep], looks: Mapping[str, Look]) -> list[tuple[str, MeanEffects]]:
    """The strongest edits in either direction, by their names in the table."""
    return [
        (f"{_drawn(sweep, looks).title}, {signed(each.strength, 'g')}", each)
        for sweep in sweeps
        for each in dict.fromkeys((sweep.effects[0], sweep.effects[-1]))
    ]


def _times(log_ratio: float) -> str:
    return f"{math.exp(log_ratio):.2g} times"


def _within(interval: Interval) -> str:
    return f"{CONFIDENCE:.0%} interval {math.exp(interval.low):.2g} to {math.exp(interval.high):.2g}"


def _signed_ticks() -> FuncFormatter:
    return FuncFormatter(lambda value, _: signed(value, "g") if value else "0")
