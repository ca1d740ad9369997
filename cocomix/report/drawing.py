"""Plots as inline SVG, with selectable text and the colours and font of the page."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


class Look(NamedTuple):
    """How a method is drawn."""

    variable: str
    """The page's CSS variable of its colour."""
    dashes: tuple[float, ...]
    """Dash pattern, in line widths: curves can be told apart without colours."""
    marker: str

    @property
    def color(self) -> str:
        """The colour, as matplotlib takes it."""
        return _STANDINS[self.variable]

    @property
    def line(self) -> tuple[float, tuple[float, ...] | None]:
        """The line style, as matplotlib takes it."""
        return 0, self.dashes or None


_METHODS: dict[str, Look] = {
    "ntp": Look("ntp", (3.7, 1.6), "s"),
    "kd": Look("kd", (6.4, 1.6, 1, 1.6), "D"),
    "pause": Look("pause", (1, 1.65), "^"),
    "mtp": Look("mtp", (6.4, 1.6, 1, 1.6, 1, 1.6), "v"),
    "cocomix": Look("cocomix", (), "o"),
}
_FORM_VARIABLES = tuple(f"form-{number}" for number in range(1, 6))
_FORM_DASHES = ((9, 2), (2, 1), (9, 2, 3, 2), (1, 3.5))
_FORM_MARKERS = ("P", "X", "<", ">", "h")

# Placeholder colours for matplotlib; each is replaced by a CSS variable of the page, which has light and dark values.
_VARIABLES = {
    f"#{n:02}{n:02}{n:02}": name
    for n, name in enumerate(["ink", "muted", "rule", *_METHODS, *_FORM_VARIABLES], start=1)
}
_STANDINS = {name: color for color, name in _VARIABLES.items()}
INK, MUTED, RULE = (_STANDINS[each] for each in ("ink", "muted", "rule"))

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
_DPI = 72
"""Of SVG in matplotlib."""
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


class Drawing:
    """A figure with one pair of axes, and the resulting SVG."""

    def __init__(self, width: float, height: float) -> None:
        self._figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
        FigureCanvasSVG(self._figure)
        self.axes: Axes = self._figure.add_subplot()
        self.axes.set_axisbelow(True)
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.tick_params(length=0, labelcolor=INK)
        self.svg = ""
        """The `<svg>` element; set when `drawing` ends."""

    def _finish(self, name: str, title: str) -> None:
        # Left to savefig, the layout would cost a drawing of its own, which nobody sees.
        if layout := self._figure.get_layout_engine():
            layout.execute(self._figure)
        self._figure.set_layout_engine("none")
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


def looks(forms: Iterable[str]) -> dict[str, Look]:
    """The look of each method and form; it recurs after 20 forms."""
    some = zip(cycle(_FORM_VARIABLES), cycle(_FORM_DASHES), cycle(_FORM_MARKERS), strict=True)
    return {**_METHODS, **{name: Look(*each) for name, each in zip(forms, some, strict=False)}}


def swatch(look: Look) -> str:
    """An `<svg>` element with a piece of the method's line, for tables."""
    dashes = " ".join(f"{3 * each:g}" for each in look.dashes)
    line = (
        f'<line x1="0" y1="2" x2="36" y2="2" stroke="var(--{look.variable})" stroke-width="3" '
        f'stroke-dasharray="{dashes}"/>'
    )
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
