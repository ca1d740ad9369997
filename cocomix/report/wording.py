"""Figures as people read them, and the answer in a few sentences."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from cocomix.report.comparison import BASELINE, MethodResult, Spread

NAMES = {
    "ntp": "Next-token prediction",
    "kd": "Knowledge distillation",
    "pause": "Pause tokens",
    "cocomix": "CoCoMix",
}


def si(value: float, unit: str = "") -> str:
    """Three digits and a prefix: `3.07 M`, `45.6 TFLOP`."""
    power = min(6, max(0, int(math.log10(abs(value)) // 3))) if abs(value) >= 1 else 0
    scaled = value / 1000**power
    if round(scaled) >= 1000 and power < 6:
        scaled, power = scaled / 1000, power + 1
    digits = max(0, 2 - int(math.log10(abs(scaled)))) if abs(scaled) >= 1 else 2
    prefix = ("", "k", "M", "G", "T", "P", "E")[power]
    number = f"{scaled:.{digits}f}" if power or scaled != int(scaled) else str(int(scaled))
    return f"{number} {prefix}{unit}".rstrip()


def duration(seconds: float) -> str:
    """`42 s`, `5.5 min` or `3.2 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def over_seeds(value: Spread, form: str) -> str:
    """The mean, and where they differ the lowest and the highest: `4.412 (4.401 to 4.420)`."""
    mean, low, high = (format(each, form) for each in value)
    return mean if value.low == value.high else f"{mean} ({low} to {high})"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(map(str.rstrip, lines))


class Answer(NamedTuple):
    """What a method gains over the baseline, and what it costs and how far that can be trusted."""

    headline: str
    details: str


def answer(result: MethodResult, baseline: MethodResult) -> Answer:
    """The answer for one method, in full sentences."""
    name, other = NAMES[result.method], NAMES[BASELINE].lower()
    saving, ours, theirs = result.saving, result.runs[0].training, baseline.runs[0].training
    assert saving is not None
    cost = ours.flops_per_token / theirs.flops_per_token
    gap = result.validation_loss.mean - baseline.validation_loss.mean
    against = f"{result.validation_loss.mean:.3f} against {baseline.validation_loss.mean:.3f}"
    if saving.tokens and saving.tokens_saved and saving.flops_ratio:
        where = "" if saving.reached == saving.seeds else f" in {saving.reached} of {saving.seeds} seeds"
        headline = (
            f"{name} came down to the final validation loss of {other}{where} after "
            f"{si(saving.tokens.mean)} of {si(theirs.tokens)} tokens, {saving.tokens_saved.mean:.0%} fewer."
        )
        compute = (
            f"A token costs it {cost:.2f} times the training FLOPs, so that it had spent {saving.flops_ratio.mean:.2f} "
            f"times the compute of {other} by then"
        )
    else:
        headline = f"{name} did not come down to the final validation loss of {other}."
        compute = f"A token costs it {cost:.2f} times the training FLOPs"
    compare = "lower" if gap < 0 else "higher"
    last = f"After {si(ours.tokens)} tokens its loss is {against}, {abs(gap):.3f} nats {compare}."
    return Answer(headline, f"{compute}; making the concepts is not counted in this. {last} {_trust(result)}")


def _trust(result: MethodResult) -> str:
    count = len(result.runs)
    if count == 1:
        return "This is one seed: how much of it is chance, it cannot tell."
    saved = result.saving and result.saving.tokens_saved
    spread = f"; the share of tokens saved went from {saved.low:.0%} to {saved.high:.0%}" if saved else ""
    return f"These are means of {count} seeds{spread}."
