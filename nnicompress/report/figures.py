"""The report's pictures, drawn by matplotlib as inline SVG: training curves, quality against cost, channels kept."""

from __future__ import annotations

import functools
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, product
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
    EngFormatter,
    Formatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)
from matplotlib.transforms import Bbox

from nnicompress.report import words
from nnicompress.report.record import CurveRecord, Report

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


def _inline(draw: Callable[[Report], tuple[Figure, str] | None]) -> Callable[[Report], str | None]:
    """Let `draw` work in the page's style; what it returns, a figure and its label, is written as inline SVG."""

    @functools.wraps(draw)
    def written(report: Report) -> str | None:
        style = {**STYLE, "svg.hashsalt": draw.__name__}  # the salt keeps the ids of a page's figures apart
        with matplotlib.style.context(["default", style]), warnings.catch_warnings():
            # A name in a script that the measuring font lacks is shown in the reader's font all the same.
            warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
            drawn = draw(report)
            return None if drawn is None else _svg(*drawn)

    return written


@_inline
def training_curves(report: Report) -> tuple[Figure, str] | None:
    """Loss (logarithmic) above, the validation metric below, all trainings after each other; None without one."""
    curves = [curve for curve in report.curves if curve.total_steps]
    starts = list(accumulate((curve.total_steps for curve in curves), initial=0))
    losses = [loss for curve in curves for loss in curve.losses if math.isfinite(loss)]
    scores = [score for curve in curves for _, _, score in _scores(curve)]
    panels: list[tuple[Callable[..., None], list[float], int]] = [(_losses, losses, 3), (_metrics, scores, 2)]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    figure = _figure(HALF, PANEL + 44 if len(panels) == 2 else 240)
    heights = [height for _, _, height in panels]
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (draw, values, _) in zip(rows, panels, strict=True):
        draw(axes, report, list(zip(starts, curves, strict=False)), values)
        axes.tick_params(axis="x", length=0)
        for start in starts[1:-1]:
            axes.axvline(start, color=SOFT, linewidth=1, linestyle=(0, (2, 4)))
    axes.set_xlim(0, starts[-1])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("optimizer steps", loc="right")
    _name_stages(rows[0], starts, [curve.stage for curve in curves])
    return figure, f"Training loss and {report.metric} of every training stage"


@_inline
def quality_against_cost(report: Report) -> tuple[Figure, str] | None:
    """The metric over multiply-accumulates, from phase to phase; None where either was not measured."""
    measured = [(p.macs, p.accuracy, p.label) for p in report.phases if p.macs is not None and p.accuracy is not None]
    points = [(float(macs), value, label) for macs, value, label in measured if math.isfinite(value)]
    if len(points) < 2:
        return None
    costs, values, _ = zip(*points, strict=True)
    figure = _figure(HALF, PANEL + 44)
    axes = figure.subplots()
    axes.set_title(f"{report.metric} ({report.split})")
    axes.set_xlim(0, 1.06 * max(costs) or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NO-BREAK SPACE}"))
    axes.set_xlabel("multiply-accumulates of one sample", loc="right")
    _scale(axes, report, values, 0.15, 5)
    axes.plot(costs, values, color=ACCENT, alpha=0.35, linewidth=2, clip_on=False)
    labels = []
    for number, (cost, value, name) in enumerate(points, start=1):
        last, shown = number == len(points), words.metric(report, value)
        (dot,) = axes.plot(cost, value, "o", color=ACCENT, markersize=13 if last else 10, clip_on=False)
        dot.set(zorder=3, markeredgewidth=2, markerfacecolor=ACCENT if last else CARD)
        _tip(dot, f"{name}: {shown} at {words.count(round(cost))}")
        labels.append(f"{name}  {shown}")
    _label_points(figure, axes, list(zip(costs, values, strict=True)), labels)
    return figure, f"{report.metric} against multiply-accumulates over the phases"


@_inline
def channels(report: Report) -> tuple[Figure, str] | None:
    """A bar a layer: what stayed in front of what was there; None where nothing was pruned."""
    layers = report.layers
    if not layers or all(layer.after == layer.before for layer in layers):
        return None
    figure = _figure(FULL, 12 + len(layers) * (20.0 if len(layers) <= 40 else 16.0))
    axes = figure.subplots()
    rows = range(len(layers))
    before = axes.barh(rows, [layer.before for layer in layers], height=0.7, color=TRACK)
    kept = axes.barh(rows, [layer.after for layer in layers], height=0.7, color=ACCENT)
    counts = [f"{layer.after} of {layer.before}" for layer in layers]
    untouched = [layer.after == layer.before for layer in layers]
    shares = [
        "" if whole else f"{100 * layer.after / layer.before:.0f} %"
        for layer, whole in zip(layers, untouched, strict=True)
    ]
    notes = axes.bar_label(before, counts, padding=8)
    parts = axes.bar_label(before, shares, padding=24 + max(map(_width, counts)), color=SOFT)
    for layer, whole, note, part, *bars in zip(layers, untouched, notes, parts, before, kept, strict=True):
        note.set(color=SOFT if whole else INK, va="center_baseline")
        part.set(va="center_baseline")
        for bar in bars:
            _tip(bar, f"{layer.name}: {layer.after} of {layer.before} {layer.unit} kept. {layer.note}".strip())
    axes.set_xlim(0, max(layer.before for layer in layers))
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_yticks(rows, [_shortened(layer.name) for layer in layers], color=INK)
    axes.xaxis.set_visible(False)
    axes.grid(False)
    return figure, f"{layers[0].unit.capitalize()} kept in each width of the network"


def _losses(axes: Axes, report: Report, trainings: list[tuple[int, CurveRecord]], losses: list[float]) -> None:
    low, high = min(losses), max(losses)
    axes.set_title("training loss")
    if low > 0 and high > 3 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.15, high * 1.15)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 1000 * low else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        pad = 0.05 * (high - low or abs(high) or 1)
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))
    for start, curve in trainings:
        finite = [loss if math.isfinite(loss) else math.nan for loss in curve.losses]
        (line,) = axes.plot([start + step for step in curve.steps], finite, color=ACCENT, linewidth=1.5, clip_on=False)
        _tip(line, f"{curve.stage}: training loss")


def _metrics(axes: Axes, report: Report, trainings: list[tuple[int, CurveRecord]], scores: list[float]) -> None:
    axes.set_title(f"validation {report.metric}")
    _scale(axes, report, scores, 0.08, 3)
    for start, curve in trainings:
        points = [(start + step, score) for _, step, score in _scores(curve)]
        axes.plot([x for x, _ in points], [score for _, score in points], color=SECOND, linewidth=2, clip_on=False)
        for (x, score), (epoch, _, _) in zip(points, _scores(curve), strict=True):
            (dot,) = axes.plot(x, score, "o", color=SECOND, markersize=5, clip_on=False)
            _tip(dot, f"{curve.stage}, epoch {epoch}: {words.metric(report, score)}")


def _scores(curve: CurveRecord) -> Iterator[tuple[int, int, float]]:
    """Epoch, step and validation metric of the epochs that have one."""
    for epoch, (step, metrics) in enumerate(zip(curve.epoch_steps, curve.metrics, strict=True), start=1):
        if math.isfinite(metrics.get("default", math.nan)):
            yield epoch, step, metrics["default"]


def _scale(axes: Axes, report: Report, values: Iterable[float], margin: float, ticks: int) -> None:
    """A y axis of the report's metric around `values`, not from zero; a share's ends at 100 %."""
    low, high = min(values), max(values)
    pad = margin * (high - low or 0.1 * abs(high) or 1)
    share = words.is_share(report)
    axes.set_ylim(low - pad, max(high, min(high + pad, 1.0)) if share else high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(ticks, steps=ROUND))
    shown: Formatter = PercentFormatter(1.0, symbol=" %") if share else StrMethodFormatter("{x:.6g}")
    axes.yaxis.set_major_formatter(shown)


def _name_stages(axes: Axes, starts: list[int], names: list[str]) -> None:
    """Each stage's name over its part, a row higher where the names would cover each other."""
    least = 0.8 * HALF / starts[-1]  # pixels of a step, on an axis as narrow as its tick labels can make it
    rows: list[float] = []  # where the last name of each row ends
    for name, begin, end in zip(names, starts, starts[1:], strict=False):
        middle, width = (begin + end) / 2, _width(name, "bold")
        row = next((row for row, taken in enumerate(rows) if taken + 8 < middle * least - width / 2), len(rows))
        rows[row : row + 1] = [middle * least + width / 2]
        above = (0, 26 + 16 * row)
        note = axes.annotate(name, (middle, 1), above, ("data", "axes fraction"), "offset points")
        note.set(ha="center", fontweight="bold")


def _label_points(figure: Figure, axes: Axes, points: list[tuple[float, float]], labels: list[str]) -> None:
    """A label beside each point, where it covers neither another one nor a point, nor, if possible, the path."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the labels fit into the layout as it is now
    pixels = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in pixels]
    track = Path(pixels)
    weights = ["normal"] * (len(labels) - 1) + ["bold"]
    for point, (x, y), text, weight in zip(points, pixels, labels, weights, strict=True):
        width = _width(text, weight)
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


def _figure(width: float, height: float) -> Figure:
    figure = Figure((width / UNITS_PER_INCH, height / UNITS_PER_INCH), dpi=UNITS_PER_INCH)
    FigureCanvasSVG(figure)
    return figure


def _width(text: str, weight: str = "normal") -> float:
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=FONT_SIZE, weight=weight), False)[0]


def _tip(artist: Artist, text: str) -> None:
    """What a browser shows while the pointer rests on `artist`."""
    artist.set_gid(f"{TIP}{text}")


def _shortened(name: str, most: int = 32) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _svg(figure: Figure, label: str) -> str:
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
