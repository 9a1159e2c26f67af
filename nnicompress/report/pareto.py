"""Quality against cost over several runs, with the Pareto front: what no other run beats in both."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from nnicompress.report import words
from nnicompress.report.comparison import RunComparison
from nnicompress.report.drawing import (
    ACCENT,
    CARD,
    HALF,
    PANEL,
    ROUND,
    SOFT,
    STYLE,
    add_tip,
    new_figure,
    scale_quality,
    text_width,
    to_svg,
)
from nnicompress.report.record import Report

MOST_LABELS = 25
"""With more runs than this only those of the front carry their number; a tip names each of the others."""
_PLACES = ((-0.6, 1), (0.6, -1), (1, 0), (-1, 0), (0.6, 1), (-0.6, -1), (0, 1.2), (0, -1.2))
"""Where a number may stand, in steps right and up; the front's line runs right and up from its points."""
COSTS = {
    "macs_ratio": "multiply-accumulates, share of the baseline",
    "latency_ratio": "latency, share of the baseline",
    "size_ratio": "weights file, share of the baseline",
}


@dataclass(frozen=True)
class _Point:
    """A run in the plot; `number` is its row in the table."""

    number: int
    label: str
    cost: float
    quality: float


def pareto_front(points: Sequence[tuple[float, float]], *, mode: str = "max") -> list[int]:
    """Indices of the `(cost, quality)` that no other beats, cheapest first.

    One beats another where it is no worse in both and better in one: cost is better when smaller, quality when larger
    (`mode` is `max`) or smaller (`min`). Of equal points each is on the front.
    """
    sign = 1 if mode == "max" else -1
    by_cost = sorted(range(len(points)), key=lambda index: (points[index][0], -sign * points[index][1]))
    front: list[int] = []
    best: tuple[float, float] | None = None
    for index in by_cost:
        cost, quality = points[index][0], sign * points[index][1]
        if best is None or quality > best[1] or (cost, quality) == best:
            front.append(index)
            best = (cost, quality)
    return front


def trade_offs(comparison: RunComparison) -> list[str]:
    """Inline SVGs of the metric over each cost that at least two runs have measured; none where metrics differ.

    The weights file stands in for multiply-accumulates where those could not be counted.
    """
    if not comparison.ordered:
        return []
    report = comparison.done[0].report
    assert report is not None
    plots = {name: points for name in COSTS if len(points := _points(comparison, name)) >= 2}
    if "macs_ratio" in plots:
        plots.pop("size_ratio", None)
    return [_drawn(report, name, points) for name, points in plots.items()]


def _points(comparison: RunComparison, name: str) -> list[_Point]:
    found = []
    for number, entry in enumerate(comparison.entries, start=1):
        cost, quality = entry.numbers.get(name), entry.value
        if cost is not None and quality is not None and math.isfinite(cost) and math.isfinite(quality):
            found.append(_Point(number, entry.label, cost, quality))
    return found


def _drawn(report: Report, name: str, points: list[_Point]) -> str:
    style = {**STYLE, "svg.hashsalt": name}  # the salt keeps the ids of a page's figures apart
    with matplotlib.style.context(["default", style]), warnings.catch_warnings():
        # A name in a script that the measuring font lacks is shown in the reader's font all the same.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure = _plot(report, name, points)
        return to_svg(figure, f"{report.metric} against {COSTS[name]}, a point for each run")


def _plot(report: Report, name: str, points: list[_Point]) -> Figure:
    front = pareto_front([(point.cost, point.quality) for point in points], mode=report.mode)
    figure = new_figure(HALF, PANEL + 44)
    axes = figure.subplots()
    axes.set_title(f"{report.metric} ({report.split})")
    axes.set_xlim(0, 1.06 * max(1.0, *(point.cost for point in points)))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}×"))
    axes.set_xlabel(COSTS[name], loc="right")
    scale_quality(axes, report, [point.quality for point in points], 0.15, 5)
    axes.axvline(1.0, color=SOFT, linewidth=1, linestyle=(0, (2, 4)))
    corners = [points[index] for index in front]
    (line,) = axes.plot(
        [point.cost for point in corners],
        [point.quality for point in corners],
        color=ACCENT, alpha=0.35, linewidth=2, clip_on=False,
        drawstyle="steps-post",  # between two runs of the front, only the cheaper one's quality has been reached
    )  # fmt: skip
    add_tip(line, "Pareto front: no run is better in both")
    for index, point in enumerate(points):
        on_front = index in front
        (dot,) = axes.plot(point.cost, point.quality, "o", color=ACCENT if on_front else SOFT, clip_on=False)
        dot.set(zorder=3, markersize=11 if on_front else 8, markeredgewidth=2)
        dot.set_markerfacecolor(ACCENT if on_front else CARD)
        quality = words.metric(report, point.quality)
        add_tip(dot, f"{point.number}. {point.label}: {quality} at {words.ratio(point.cost)}")
    _number(figure, points, points if len(points) <= MOST_LABELS else corners)
    return figure


def _number(figure: Figure, points: list[_Point], labelled: list[_Point]) -> None:
    """Each point's number close beside it, where it covers no other point or number, if there is such a place."""
    (axes,) = figure.axes
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the numbers fit into the layout as it is now
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform([_at(p) for p in points])]
    for point in labelled:
        text, (x, y) = str(point.number), axes.transData.transform(_at(point))
        width = text_width(text)
        places = []
        for order, (right, up) in enumerate(_PLACES):
            shift = (right * (9 + width / 2), up * 13)
            box = Bbox.from_bounds(x + shift[0] - width / 2, y + shift[1] - 6, width, 12)
            outside = not (axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0)
            places.append((box.count_overlaps(taken) + outside, order, shift, box))
        *_, shift, box = min(places, key=lambda place: place[:2])
        axes.annotate(text, _at(point), shift, textcoords="offset points", ha="center", va="center")
        taken.append(box)


def _at(point: _Point) -> tuple[float, float]:
    return point.cost, point.quality
