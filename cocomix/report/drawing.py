"""Plots as inline SVG, in the colours and the font of the page around them, with text that can be selected."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from cocomix.params import Method
from cocomix.report.wording import NAMES

# Stand-ins that matplotlib accepts, each replaced by the page's variable, which knows light and dark.
_VARIABLES = {f"#{n:02}{n:02}{n:02}": name for n, name in enumerate(["ink", "muted", "rule", *NAMES], start=1)}
_STANDINS = {name: color for color, name in _VARIABLES.items()}
INK, MUTED, RULE = (_STANDINS[each] for each in ("ink", "muted", "rule"))
COLORS: dict[Method, str] = {method: _STANDINS[method] for method in NAMES}
DASHES: dict[Method, tuple[float, ...]] = {
    "ntp": (3.7, 1.6),
    "kd": (6.4, 1.6, 1, 1.6),
    "pause": (1, 1.65),
    "cocomix": (),
}
"""On and off, in widths of the line: curves can also be told apart without their colours."""
MARKERS: dict[Method, str] = {"ntp": "s", "kd": "D", "pause": "^", "cocomix": "o"}

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a name is no formula
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


class Drawing:
    """A figure of one pair of axes, and what became of it."""

    def __init__(self, width: float, height: float) -> None:
        self._figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(self._figure)
        self.axes: Axes = self._figure.add_subplot()
        self.axes.set_axisbelow(True)
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.tick_params(length=0, labelcolor=INK)
        self.svg = ""
        """The `<svg>` element, when `drawing` has ended."""

    def _finish(self, name: str, title: str) -> None:
        stream = io.StringIO()
        self._figure.savefig(stream, format="svg", transparent=True, metadata=_NO_METADATA)
        self.svg = _inline(stream.getvalue(), name, title)


@contextmanager
def drawing(name: str, title: str, width: float, height: float) -> Iterator[Drawing]:
    """Draw on the axes inside; afterwards its `svg` is there.

    Args:
        name: unlike any other on the page: of its ids.
        title: what it shows, for those who do not see it.
        width, height: of the picture, in inches of 72 units; the page scales it.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        made = Drawing(width, height)
        yield made
        made._finish(name, title)


def line_of(method: Method) -> tuple[float, tuple[float, ...] | None]:
    """Its dashes, as matplotlib takes them."""
    return 0, DASHES[method] or None


def swatch(method: Method) -> str:
    """A piece of the method's curve, for tables, as an `<svg>` element."""
    dashes = " ".join(f"{3 * each:g}" for each in DASHES[method])
    line = f'<line x1="0" y1="2" x2="36" y2="2" stroke="var(--{method})" stroke-width="3" stroke-dasharray="{dashes}"/>'
    return f'<svg class="swatch" viewBox="0 0 36 4" aria-hidden="true">{line}</svg>'


def _inline(svg: str, name: str, title: str) -> str:
    """Only what belongs into a page: one element, ids of its own, no foreign addresses, the page's colours."""
    root = ElementTree.fromstring(svg)
    root.attrib = {"role": "img", "aria-label": title, "viewBox": root.attrib["viewBox"]}
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _owned(_local(key), value, name) for key, value in element.items()}
    return ElementTree.tostring(root, encoding="unicode")


def _local(tag: str) -> str:
    """A name without its XML namespace, of which a page has none."""
    return tag.rpartition("}")[2]


def _owned(key: str, value: str, name: str) -> str:
    """The value of an attribute, with the ids and the colours of the page."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-")
    for color, variable in _VARIABLES.items():
        value = value.replace(color, f"var(--{variable})")
    return value.replace("url(#", f"url(#{name}-")
