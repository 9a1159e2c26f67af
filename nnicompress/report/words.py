"""Numbers as a reader wants them, the same in the terminal and in HTML, and the first line of every report."""

from __future__ import annotations

from typing import Protocol

from nnicompress.report.expected import compared_latency, summary_numbers
from nnicompress.report.record import ControlRecord, LatencyRecord, Report

MISSING = "–"
# Less than this is not told from the noise of a shared machine, and is not called faster.
LEAST_GAIN = 0.02


def units(report: Report) -> str:
    """What was pruned, in words: `channels`, `heads, feed-forward channels and hidden channels`."""
    asked = [layer for layer in report.layers if layer.asked is not None] or report.layers
    *others, last = dict.fromkeys(layer.unit for layer in asked)
    return f"{', '.join(others)} and {last}" if others else last


def count(value: int | None) -> str:
    """`271,690` below a million, then `2.51 M`, `1.82 G`."""
    if value is None:
        return MISSING
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,}"


_ROUNDED_TO_ONE = 0.9995
"""Of a unit, this and more would be `1e+03` of the smaller one, in three digits."""


def size(value: int | None) -> str:
    """Decimal kilobytes and megabytes: `1.12 MB`."""
    if value is None:
        return MISSING
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= step * _ROUNDED_TO_ONE:
            return f"{value / step:.3g} {unit}"
    return f"{value} B"


def seconds(value: float | None) -> str:
    """Milliseconds below a second: `1.83 ms`, `12.4 s`, `3 min 05 s`."""
    if value is None:
        return MISSING
    if value < _ROUNDED_TO_ONE:
        return f"{value * 1e3:.3g} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def latency(record: LatencyRecord | None) -> str:
    """The median: `1.83 ms`."""
    if record is None:
        return MISSING
    scale, unit = (1e3, "ms") if record.median < _ROUNDED_TO_ONE else (1.0, "s")
    return f"{three_digits(record.median * scale)} {unit}"


def spread(record: LatencyRecord | None) -> str:
    """The quartiles, in the unit of the median: `1.79–1.90`."""
    if record is None:
        return ""
    scale = 1e3 if record.median < _ROUNDED_TO_ONE else 1.0
    return f"{three_digits(record.low * scale)}–{three_digits(record.high * scale)}"


def three_digits(value: float) -> str:
    """Three significant digits, trailing zeros kept: `1.90`."""
    return f"{value:.0f}" if value >= 999.5 else f"{value:#.3g}".removesuffix(".")


class OfMetric(Protocol):
    """Whatever says which metric its numbers are of."""

    @property
    def metric(self) -> str:
        """Its name: `accuracy`."""


def is_share(report: OfMetric) -> bool:
    """Whether the metric is a share that reads as per cent, as accuracies do."""
    return "accuracy" in report.metric.lower() or report.metric.lower() in ("f1", "precision", "recall", "iou")


def metric(report: OfMetric, value: float | None) -> str:
    """`97.8 %` for a share, four digits otherwise."""
    if value is None:
        return MISSING
    return f"{100 * value:.1f} %" if is_share(report) else f"{value:.4g}"


def metric_change(report: OfMetric, before: float, after: float) -> str:
    """`−0.8 points`, with the sign of the number itself."""
    change = after - before
    text = f"{100 * change:+.1f} points" if is_share(report) else f"{change:+.3g}"
    return text.replace("-", "−")


def controlled(control: ControlRecord, report: OfMetric) -> str:
    """What accuracy control came to, in a sentence or two."""
    allowed = metric_change(report, control.max_drop, 0.0).lstrip("−+")
    change = metric_change(report, control.baseline, control.metric)
    what = f"validation {report.metric} {metric(report, control.metric)} ({change}, {allowed} allowed)"
    shown = ", ".join(control.in_float[:5]) + (
        f" and {len(control.in_float) - 5} more" if len(control.in_float) > 5 else ""
    )
    if not control.in_float:
        kept = f"all {control.parts} parts are quantized"
    elif len(control.in_float) == control.parts:
        kept = f"all {control.parts} parts are left in float"
    else:
        kept = f"{len(control.in_float)} of {control.parts} parts are left in float: {shown}"
    if control.met:
        return f"Accuracy control: {kept}; {what}."
    return f"Accuracy control can't keep the bound, not even with all of the model in float: {what}; {kept}."


def ratio(value: float | None) -> str:
    """`0.41×`."""
    return MISSING if value is None else f"{value:.2f}×"


def speed_up(report: Report) -> tuple[float, int] | None:
    """Baseline's latency over the result's in one runtime, and the batch size of both; None where not measured."""
    found = compared_latency(report.phases, report.artifacts, report.batch_size)
    return None if found is None else (found[0].median / found[1].median, found[0].batch_size)


def numbers(report: Report) -> dict[str, float | None]:
    """Final against baseline, by the names of `expected:`."""
    return summary_numbers(report.phases, report.artifacts, batch_size=report.batch_size, mode=report.mode)


def headline(report: Report) -> str:
    """The result in one or two sentences; the first words say so where nothing became faster."""
    found = numbers(report)
    served = next((a.baseline_accuracy for a in report.artifacts if a.baseline_accuracy is not None), None)
    before, after = (report.baseline.accuracy if served is None else served), found["accuracy"]
    name = report.metric.capitalize()
    if len(report.phases) == 1:
        return "Not compressed: a baseline." + ("" if after is None else f" {name} {metric(report, after)}.")
    quality = ""
    if before is not None and after is not None:
        change = metric_change(report, before, after)
        quality = f" {name} {metric(report, before)} → {metric(report, after)} ({change})."
    if report.masked_only:
        zeros = 100 * report.final.zeros / max(1, report.final.parameters)
        return f"No speed-up: masks only. {zeros:.0f} % of the parameters are zero, no tensor is smaller.{quality}"
    name, share = ("multiply-accumulates", found["macs_ratio"])
    if share is None:
        name, share = ("parameters", found["params_ratio"])
    assert share is not None, "every phase has parameters"
    cost = f" with {100 * share:.0f} % of the {name}"
    if report.quantization is not None:
        file = next((a for a in report.artifacts if a.latency and a.baseline_bytes), None)
        size = found["size_ratio"] if file is None else file.bytes / (file.baseline_bytes or file.bytes)
        cost = f" with {100 * (size or 1):.0f} % of the bytes"
    measured = speed_up(report)
    if measured is None:
        return f"Speed not measured,{cost}.{quality}"
    gain, batch_size = measured
    if gain < 1 + LEAST_GAIN:
        return f"Not faster: {gain:.2f} times the baseline's speed at batch {batch_size},{cost}.{quality}"
    return f"{gain:.2f} times as fast at batch {batch_size},{cost}.{quality}"
