"""Learning curves as inline SVG, in the colours and the font of the page around them."""

import io
import re
from collections.abc import Sequence
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from cocomix.report.comparison import BASELINE, MethodResult, reach
from cocomix.report.wording import NAMES

# Stand-ins that matplotlib accepts, each replaced by the page's variable, which knows light and dark.
_VARIABLES = {f"#{n:02}{n:02}{n:02}": name for n, name in enumerate(["ink", "muted", "rule", *NAMES], start=1)}
_STANDINS = {name: color for color, name in _VARIABLES.items()}
_INK, _MUTED, _RULE = (_STANDINS[each] for each in ("ink", "muted", "rule"))
DASHES: dict[str, tuple[float, ...]] = {"ntp": (3.7, 1.6), "kd": (6.4, 1.6, 1, 1.6), "pause": (1, 1.65), "cocomix": ()}
"""On and off, in widths of the line: curves can also be told apart without their colours."""
Axis = Literal["tokens", "flops"]
_EARLY = 0.2
"""Share of the training that sets the top of the picture: before, losses fall so far that they hide the rest."""


def learning_curves(results: Sequence[MethodResult], against: Axis, title: str) -> str:
    """Validation loss of every run against what it has cost so far, as an `<svg>` element."""
    style = {
        "svg.fonttype": "none",  # text that can be selected, in the page's font
        "svg.hashsalt": against,
        "font.family": "sans-serif",
        "font.size": 9.5,
        "text.color": _INK,
        "axes.edgecolor": _MUTED,
        "axes.labelcolor": _INK,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "grid.color": _RULE,
    }
    baseline = next((result for result in results if result.method == BASELINE), None)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.0, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for result in results:
            color, line = _STANDINS[result.method], (0, DASHES[result.method] or None)
            for run in result.runs:
                axes.plot(getattr(run.curve, against), run.curve.loss, linestyle=line, color=color, linewidth=1.8)
            axes.plot([], [], linestyle=line, color=color, linewidth=1.8, label=NAMES[result.method])
            if baseline and result is not baseline:
                _mark_reach(axes, result, baseline, against)
        losses = [
            loss
            for result in results
            for run in result.runs
            for loss in run.curve.loss[run.curve.tokens >= _EARLY * run.curve.tokens[-1]]
        ]
        margin = 0.06 * (max(losses) - min(losses)) or 0.1
        axes.set_ylim(min(losses) - margin, max(losses) + margin)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter("FLOP" if against == "flops" else ""))
        axes.set_xlabel("training tokens" if against == "tokens" else "training compute")
        axes.set_ylabel("validation loss (nats a token)")
        axes.grid(visible=True, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0, labelcolor=_INK)
        axes.legend(frameon=False, loc="upper right")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue(), against, title)


def swatch(method: str) -> str:
    """A piece of the method's curve, for tables, as an `<svg>` element."""
    dashes = " ".join(f"{3 * each:g}" for each in DASHES[method])
    line = f'<line x1="0" y1="2" x2="36" y2="2" stroke="var(--{method})" stroke-width="3" stroke-dasharray="{dashes}"/>'
    return f'<svg class="swatch" viewBox="0 0 36 4" aria-hidden="true">{line}</svg>'


def _mark_reach(axes: Axes, result: MethodResult, baseline: MethodResult, against: Axis) -> None:
    """A thin line from the end of the baseline's curve to where the method's curve has come down as far."""
    for run, other in zip(result.runs, baseline.runs, strict=True):
        end, loss = getattr(other.curve, against)[-1], other.curve.loss[-1]
        if found := reach(run.curve, loss):
            start = getattr(found, against)
            axes.plot([start, end], [loss, loss], "-", color=_MUTED, linewidth=0.6)
            axes.plot([start], [loss], "o", color=_INK, markersize=3.5)


def _inline(svg: str, name: str, title: str) -> str:
    """Only what belongs into a page: one element, ids of its own, no foreign addresses, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", svg, count=5)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub("|".join(_VARIABLES), lambda match: f"var(--{_VARIABLES[match[0]]})", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
