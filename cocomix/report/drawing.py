"""Plots as inline SVG, with selectable text and the colours and font of the page."""

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

# Placeholder colours for matplotlib; each is replaced by a CSS variable of the page, which has light and dark values.
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
"""Dash patterns, in line widths: curves can be told apart without colours."""
MARKERS: dict[Method, str] = {"ntp": "s", "kd": "D", "pause": "^", "cocomix": "o"}

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is no formula
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
    """A figure with one pair of axes, and the resulting SVG."""

    def __init__(self, width: float, height: float) -> None:
        self._figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(self._figure)
        self.axes: Axes = self._figure.add_subplot()
        self.axes.set_axisbelow(True)
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.tick_params(length=0, labelcolor=INK)
        self.svg = ""
        """The `<svg>` element; set when `drawing` ends."""

    def _finish(self, name: str, title: str) -> None:
        stream = io.StringIO()
        self._figure.savefig(stream, format="svg", transparent=True, metadata=_NO_METADATA)
        self.svg = _inline(stream.getvalue(), name, title)


@contextmanager
def drawing(name: str, title: str, width: float, height: float) -> Iterator[Drawing]:
    """A context to draw on the axes; its `svg` is set at the end.

    Args:
        name: unique on the page; prefix of its element ids.
        title: description for screen readers.
        width: of the picture, in inches of 72 units; the page scales it.
        height: as `width`.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        made = Drawing(width, height)
        yield made
        made._finish(name, title)


def line_of(method: Method) -> tuple[float, tuple[float, ...] | None]:
    """The line style of a method, as matplotlib takes it."""
    return 0, DASHES[method] or None


def swatch(method: Method) -> str:
    """An `<svg>` element with a piece of the method's line, for tables."""
    dashes = " ".join(f"{3 * each:g}" for each in DASHES[method])
    line = f'<line x1="0" y1="2" x2="36" y2="2" stroke="var(--{method})" stroke-width="3" stroke-dasharray="{dashes}"/>'
    return f'<svg class="swatch" viewBox="0 0 36 4" aria-hidden="true">{line}</svg>'


def _inline(svg: str, name: str, title: str) -> str:
    """Reduce an SVG file to one element for the page: unique ids, no external addresses, the page's colours."""
    root = ElementTree.fromstring(svg)
    root.attrib = {"role": "img", "aria-label": title, "viewBox": root.attrib["viewBox"]}
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _on_page(_local(key), value, name) for key, value in element.items()}
    return ElementTree.tostring(root, encoding="unicode")


def _local(tag: str) -> str:
    """Return the name without its XML namespace; an HTML page has none."""
    return tag.rpartition("}")[2]


def _on_page(key: str, value: str, name: str) -> str:
    """Return the attribute's value with the page's ids and colours."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-")
    for color, variable in _VARIABLES.items():
        value = value.replace(color, f"var(--{variable})")
    return value.replace("url(#", f"url(#{name}-")
