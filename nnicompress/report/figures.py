"""The report's pictures, drawn by matplotlib as inline SVG: training curves, quality against cost, channels kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    StrMethodFormatter,
)

from nnicompress.report import words
from nnicompress.report.drawing import (
    ACCENT,
    CARD,
    FULL,
    HALF,
    INK,
    PANEL,
    ROUND,
    SECOND,
    SOFT,
    TRACK,
    add_tip,
    inline,
    label_points,
    new_figure,
    scale_quality,
    shortened,
    text_width,
)
from nnicompress.report.record import CurveRecord, Report


@inline
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
    figure = new_figure(HALF, PANEL + 44 if len(panels) == 2 else 240)
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


@inline
def quality_against_cost(report: Report) -> tuple[Figure, str] | None:
    """The metric over multiply-accumulates, from phase to phase; None where either was not measured.

    Where the model is quantized, over the bytes of its weights: integers are fewer bytes and as many multiplications.
    """
    by_size = report.quantization is not None
    measured = [(p.bytes if by_size else p.macs, p.accuracy, p.label) for p in report.phases]
    points = [
        (float(cost), value, label)
        for cost, value, label in measured
        if cost is not None and value is not None and math.isfinite(value)
    ]
    if len(points) < 2:
        return None
    costs, values, _ = zip(*points, strict=True)
    figure = new_figure(HALF, PANEL + 44)
    axes = figure.subplots()
    axes.set_title(f"{report.metric} ({report.split})")
    axes.set_xlim(0, 1.06 * max(costs) or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NO-BREAK SPACE}"))
    axes.set_xlabel("bytes of the weights" if by_size else "multiply-accumulates of one sample", loc="right")
    scale_quality(axes, report, values, 0.15, 5)
    axes.plot(costs, values, color=ACCENT, alpha=0.35, linewidth=2, clip_on=False)
    labels = []
    for number, (cost, value, name) in enumerate(points, start=1):
        last, shown = number == len(points), words.metric(report, value)
        (dot,) = axes.plot(cost, value, "o", color=ACCENT, markersize=13 if last else 10, clip_on=False)
        dot.set(zorder=3, markeredgewidth=2, markerfacecolor=ACCENT if last else CARD)
        add_tip(dot, f"{name}: {shown} at {words.size(round(cost)) if by_size else words.count(round(cost))}")
        labels.append(f"{name}  {shown}")
    label_points(figure, axes, list(zip(costs, values, strict=True)), labels)
    return figure, f"{report.metric} against {'bytes' if by_size else 'multiply-accumulates'} over the phases"


@inline
def channels(report: Report) -> tuple[Figure, str] | None:
    """A bar a layer: what stayed in front of what was there, long beside the most of its unit; None: nothing pruned."""
    layers = report.layers
    if not layers or all(layer.after == layer.before for layer in layers):
        return None
    figure = new_figure(FULL, 12 + len(layers) * (20.0 if len(layers) <= 40 else 16.0))
    axes = figure.subplots()
    rows = range(len(layers))
    most = {layer.unit: max(other.before for other in layers if other.unit == layer.unit) for layer in layers}
    before = axes.barh(rows, [layer.before / most[layer.unit] for layer in layers], height=0.7, color=TRACK)
    kept = axes.barh(rows, [layer.after / most[layer.unit] for layer in layers], height=0.7, color=ACCENT)
    counts = [f"{layer.after} of {layer.before}{f' {layer.unit}' * (len(most) > 1)}" for layer in layers]
    untouched = [layer.after == layer.before for layer in layers]
    shares = [
        "" if whole else f"{100 * layer.after / layer.before:.0f} %"
        for layer, whole in zip(layers, untouched, strict=True)
    ]
    notes = axes.bar_label(before, counts, padding=8)
    parts = axes.bar_label(before, shares, padding=24 + max(map(text_width, counts)), color=SOFT)
    for layer, whole, note, part, *bars in zip(layers, untouched, notes, parts, before, kept, strict=True):
        note.set(color=SOFT if whole else INK, va="center_baseline")
        part.set(va="center_baseline")
        for bar in bars:
            add_tip(bar, f"{layer.name}: {layer.after} of {layer.before} {layer.unit} kept. {layer.note}".strip())
    axes.set_xlim(0, 1)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_yticks(rows, [shortened(layer.name) for layer in layers], color=INK)
    axes.xaxis.set_visible(False)
    axes.grid(False)
    return figure, f"{words.units(report).capitalize()} kept in each width of the network"


@inline
def accuracy_control(report: Report) -> tuple[Figure, str] | None:
    """The validation metric over the number of parts in float, a dot a measurement; None where nothing was searched."""
    control = report.quantization.control if report.quantization is not None else None
    trials = [] if control is None else [trial for trial in control.trials if math.isfinite(trial.metric)]
    if control is None or len(trials) < 2:
        return None
    bound = control.baseline + (-control.max_drop if report.mode == "max" else control.max_drop)
    figure = new_figure(FULL, PANEL)
    axes = figure.subplots()
    axes.set_title(f"validation {report.metric}")
    axes.set_xlim(-0.02 * control.parts, 1.02 * control.parts)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=ROUND))
    axes.set_xlabel("parts in float", loc="right")
    scale_quality(axes, report, [*(trial.metric for trial in trials), control.baseline, bound], 0.08, 5)
    limit = axes.axhline(bound, color=SECOND, linewidth=1, linestyle=(0, (2, 4)))
    add_tip(limit, f"the bound: {words.metric(report, bound)}")
    for trial in trials:
        chosen = trial.in_float == control.in_float
        (dot,) = axes.plot(len(trial.in_float), trial.metric, "o", color=ACCENT, markersize=11 if chosen else 7)
        dot.set(clip_on=False, zorder=3, markeredgewidth=2, markerfacecolor=ACCENT if trial.holds else CARD)
        names = ", ".join(trial.in_float) if len(trial.in_float) <= 6 else f"{len(trial.in_float)} parts"
        what = f"{names or 'nothing'} in float: {words.metric(report, trial.metric)}"
        add_tip(dot, f"{what}{', chosen' if chosen else ''}")
    return figure, f"Validation {report.metric} against the number of parts left in float"


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
        add_tip(line, f"{curve.stage}: training loss")


def _metrics(axes: Axes, report: Report, trainings: list[tuple[int, CurveRecord]], scores: list[float]) -> None:
    axes.set_title(f"validation {report.metric}")
    scale_quality(axes, report, scores, 0.08, 3)
    for start, curve in trainings:
        points = [(start + step, score) for _, step, score in _scores(curve)]
        axes.plot([x for x, _ in points], [score for _, score in points], color=SECOND, linewidth=2, clip_on=False)
        for (x, score), (epoch, _, _) in zip(points, _scores(curve), strict=True):
            (dot,) = axes.plot(x, score, "o", color=SECOND, markersize=5, clip_on=False)
            add_tip(dot, f"{curve.stage}, epoch {epoch}: {words.metric(report, score)}")


def _scores(curve: CurveRecord) -> Iterator[tuple[int, int, float]]:
    """Epoch, step and validation metric of the epochs that have one."""
    for epoch, (step, metrics) in enumerate(zip(curve.epoch_steps, curve.metrics, strict=True), start=1):
        if math.isfinite(metrics.get("default", math.nan)):
            yield epoch, step, metrics["default"]


def _name_stages(axes: Axes, starts: list[int], names: list[str]) -> None:
    """Each stage's name over its part, a row higher where the names would cover each other."""
    least = 0.8 * HALF / starts[-1]  # pixels of a step, on an axis as narrow as its tick labels can make it
    rows: list[float] = []  # where the last name of each row ends
    for name, begin, end in zip(names, starts, starts[1:], strict=False):
        middle, width = (begin + end) / 2, text_width(name, "bold")
        row = next((row for row, taken in enumerate(rows) if taken + 8 < middle * least - width / 2), len(rows))
        rows[row : row + 1] = [middle * least + width / 2]
        above = (0, 26 + 16 * row)
        note = axes.annotate(name, (middle, 1), above, ("data", "axes fraction"), "offset points")
        note.set(ha="center", fontweight="bold")
