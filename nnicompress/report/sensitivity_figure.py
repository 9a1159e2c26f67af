"""A row a layer: what each level costs as a dot, the mean as a bar."""

from __future__ import annotations

import math
import warnings

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nnicompress.report import words
from nnicompress.report.drawing import (
    ACCENT,
    FULL,
    INK,
    ROUND,
    SECOND,
    SOFT,
    STYLE,
    TRACK,
    add_tip,
    new_figure,
    shortened,
    to_svg,
)
from nnicompress.report.sensitivity_table import drop, share
from nnicompress.sensitivity.result import Sensitivity


def drops(found: Sensitivity) -> str:
    """The drops of all layers as inline SVG."""
    with matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": "drops"}]), warnings.catch_warnings():
        # A name in a script that the measuring font lacks is shown in the reader's font all the same.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        return to_svg(_plot(found), f"Drop of {found.metric} for each layer and level, the most sensitive layer first")


def _plot(found: Sensitivity) -> Figure:
    layers, rows = found.layers, range(len(found.layers))
    figure = new_figure(FULL, 50 + len(layers) * (20.0 if len(layers) <= 40 else 16.0))
    axes = figure.subplots()
    axes.grid(False)
    axes.grid(True, axis="x")
    means = [layer.mean_drop if math.isfinite(layer.mean_drop) else 0.0 for layer in layers]
    bars = axes.barh(rows, means, height=0.7, color=TRACK)
    for layer, bar in zip(layers, bars, strict=True):
        held = f"{share(layer.macs_share)} of the MACs, {share(layer.params_share)} of the parameters"
        add_tip(bar, f"{layer.name}: {drop(found, layer.mean_drop)} on average; {held}")
    for number, level in enumerate(found.levels, start=1):
        for row, layer in zip(rows, layers, strict=True):
            value = layer.drops[level]
            if not math.isfinite(value):
                continue
            (dot,) = axes.plot(value, row, "o", color=ACCENT, markersize=7, clip_on=False)
            dot.set(alpha=number / len(found.levels), markeredgewidth=0, zorder=3)
            add_tip(dot, f"{layer.name} at {level}: {drop(found, value)}")
    axes.axvline(0, color=SOFT, linewidth=1)
    bound = axes.axvline(found.max_drop, color=SECOND, linewidth=1, linestyle=(0, (2, 4)))
    add_tip(bound, f"max_drop: {drop(found, found.max_drop)}")
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_yticks(rows, [shortened(layer.name) for layer in layers], color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    unit = "points" if words.is_share(found) else "its own unit"
    scale = 100 if words.is_share(found) else 1
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:g}".replace("-", "−")))
    axes.set_xlabel(f"drop of {found.metric}, {unit}", loc="right")
    return figure
