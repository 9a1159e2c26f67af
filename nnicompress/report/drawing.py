"""What the report's figures are drawn with: the page's colours and sizes, tips, labels, and the way into inline SVG."""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterable
from itertools import product
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from matplotlib.ticker import (
    Formatter,
    MaxNLocator,
    PercentFormatter,
    StrMethodFormatter,
)
from matplotlib.transforms import Bbox

from nnicompress.report import words
from nnicompress.report.record import Report

# As wide as their places on the page are, so that one unit is one CSS pixel and text keeps its size.
HALF, FULL = 436.0, 942.0
UNITS_PER_INCH = 72  # what matplotlib's SVG is written in
PANEL = 310.0

# Stand-ins, exchanged for the page's custom properties in the finished SVG, so that its theme colours the figures too.
INK, SOFT, LINE, TRACK, ACCENT, SECOND, CARD = (f"#a0b0c{number}" for number in range(1, 8))
THEME = {INK: "ink", SOFT: "soft", LINE: "line", TRACK: "track", ACCENT: "accent", SECOND: "second", CARD: "card"}
FONT_SIZE = 12
STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "font.size": FONT_SIZE,
    "text.color": INK,
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 2 / UNITS_PER_INCH,
    "figure.constrained_layout.w_pad": 2 / UNITS_PER_INCH,
    "figure.constrained_layout.hspace": 0.03,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": SOFT,
    "axes.titlecolor": SOFT,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT_SIZE,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "grid.color": LINE,
    "grid.linewidth": 1,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "xtick.major.size": 4,
    "ytick.color": SOFT,
    "ytick.major.size": 0,
    "ytick.major.pad": 7,
}
ROUND = [1, 2, 2.5, 5, 10]
TIP = "tip:"
SVG = "{http://www.w3.org/2000/svg}"


def inline(draw: Callable[[Report], tuple[Figure, str] | None]) -> Callable[[Report], str | None]:
    """Let `draw` work in the page's style; what it returns, a figure and its label, is written as inline SVG."""

    @functools.wraps(draw)
    def written(report: Report) -> str | None:
        style = {**STYLE, "svg.hashsalt": draw.__name__}  # the salt keeps the ids of a page's figures apart
        with matplotlib.style.context(["default", style]), warnings.catch_warnings():
            # A name in a script that the measuring font lacks is shown in the reader's font all the same.
            warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
            drawn = draw(report)
            return None if drawn is None else to_svg(*drawn)

    return written


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many CSS pixels."""
    figure = Figure((width / UNITS_PER_INCH, height / UNITS_PER_INCH), dpi=UNITS_PER_INCH)
    FigureCanvasSVG(figure)
    return figure


def to_svg(figure: Figure, label: str) -> str:
    """What a page needs of matplotlib's SVG: no metadata, style sheet or spare ids; the page's colours."""
    file = io.BytesIO()
    # Not savefig, which lays everything out once more before.
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})  # type: ignore[no-untyped-call]
    root = ElementTree.fromstring(file.getvalue())
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("metadata", "style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        name = element.get("id", "")
        if name.startswith(TIP):
            tip = ElementTree.Element("title")
            tip.text = name.removeprefix(TIP)
            element.insert(0, tip)
        if element.tag == "g":  # the others' ids are referred to, and made of their content and the salt
            element.attrib.pop("id", None)
        style = re.sub("|".join(THEME), lambda found: f"var(--{THEME[found[0]]})", element.get("style", ""))
        named = {key.rpartition("}")[2]: value for key, value in element.items()}  # href instead of xlink:href
        element.attrib = {**named, "style": style} if style else named
    root.set("xmlns", SVG.strip("{}"))
    return ElementTree.tostring(root, encoding="unicode")


def scale_quality(axes: Axes, report: Report, values: Iterable[float], margin: float, ticks: int) -> None:
    """A y axis of the report's metric around `values`, not from zero; a share's ends at 100 %."""
    low, high = min(values), max(values)
    pad = margin * (high - low or 0.1 * abs(high) or 1)
    share = words.is_share(report)
    axes.set_ylim(low - pad, max(high, min(high + pad, 1.0)) if share else high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=ROUND))
    shown: Formatter = PercentFormatter(1.0, symbol=" %") if share else StrMethodFormatter("{x:.6g}")
    axes.yaxis.set_major_formatter(shown)


def label_points(figure: Figure, axes: Axes, points: list[tuple[float, float]], labels: list[str]) -> None:
    """A label beside each point, where it covers neither another one nor a point, nor, if possible, the path."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the labels fit into the layout as it is now
    pixels = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in pixels]
    track = Path(pixels)
    weights = ["normal"] * (len(labels) - 1) + ["bold"]
    for point, (x, y), text, weight in zip(points, pixels, labels, weights, strict=True):
        width = text_width(text, weight)
        choices: list[tuple[int, bool, int, tuple[int, int], Bbox]] = []
        for away, right, up in product((1, 2, 3, 4), (True, False), (1, -1, 0)):
            offset = ((1 if right else -1) * (9 if up else 14), up * (3 + 14 * away))
            box = Bbox.from_bounds(x + offset[0] - (0 if right else width), y + offset[1] - 7, width, 14)
            covered = box.count_overlaps(taken) + (not _within(box, axes.bbox))
            choices.append((covered, track.intersects_bbox(box, filled=False), len(choices), offset, box))
        *_, offset, box = min(choices)
        align = "left" if offset[0] > 0 else "right"
        axes.annotate(text, point, offset, textcoords="offset points", ha=align, va="center", fontweight=weight)
        taken.append(box)


def _within(box: Bbox, frame: Bbox) -> bool:
    return bool(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 + 8)


def text_width(text: str, weight: str = "normal") -> float:
    """How wide `text` is on the page, in CSS pixels."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=FONT_SIZE, weight=weight), False)[0]


def add_tip(artist: Artist, text: str) -> None:
    """What a browser shows while the pointer rests on `artist`."""
    artist.set_gid(f"{TIP}{text}")


def shortened(name: str, most: int = 32) -> str:
    """A long dotted name by its end."""
    return name if len(name) <= most else f"…{name[1 - most :]}"
