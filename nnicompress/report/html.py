"""`report.html`: one file with everything in it, readable in light and dark, without a network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from nnicompress.report import words
from nnicompress.report.pages import render
from nnicompress.report.record import Report
from nnicompress.report.rows import comparison, file_table, integer_lines, quality_chain
from nnicompress.report.terminal import conventions

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Tile:
    """One large number, what it is, and what it was."""

    value: str
    label: str
    detail: str
    good: bool | None = None


def write_html(report: Report, path: Path) -> None:
    """Write `path` atomically."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(render_html(report), encoding="utf-8")
    os.replace(temporary, path)


def render_html(report: Report) -> str:
    """The whole page."""
    from nnicompress.report import figures  # matplotlib takes a while to import, and only a page has figures

    drawn = {
        "curves": figures.training_curves(report),
        "channels": figures.channels(report),
        "trade": figures.quality_against_cost(report),
        "control": figures.accuracy_control(report),
    }
    return render(
        TEMPLATE,
        report=report,
        words=words,
        headline=words.headline(report),
        tiles=tiles(report),
        table=comparison(report),
        files=file_table(report),
        chain=quality_chain(report),
        integers=integer_lines(report),
        notes=[layer for layer in report.layers if layer.note],
        conventions=list(conventions(report)),
        # The figures are XML already, written by a library that escapes.
        **{name: None if drawing is None else Markup(drawing) for name, drawing in drawn.items()},
    )


def tiles(report: Report) -> list[Tile]:
    """The numbers at the top: speed, arithmetic, size, quality; those that were measured."""
    if len(report.phases) < 2:
        return []
    found = words.numbers(report)
    first, last = report.baseline, report.final
    result = []
    if measured := words.speed_up(report):
        gain, batch_size = measured
        runtime = next((a.runtime for a in report.artifacts if a.latency), "eager PyTorch")
        faster = gain >= 1 + words.LEAST_GAIN
        detail = f"batch {batch_size}, {runtime}" + ("" if faster else " (not faster)")
        result.append(Tile(f"{gain:.2f}×", "as fast as the baseline", detail, faster))
    if found["macs_ratio"] is not None and first.macs != last.macs:
        detail = f"{words.count(first.macs)} → {words.count(last.macs)}"
        result.append(Tile(_percent(found["macs_ratio"]), "of the multiply-accumulates", detail))
    if found["size_ratio"] is not None:
        detail = f"{words.size(first.bytes)} → {words.size(last.bytes)}"
        result.append(Tile(_percent(found["size_ratio"]), "of the weights file", detail))
    if found["accuracy"] is not None:
        artifact = next((a for a in report.artifacts if a.baseline_accuracy is not None), None)
        before = first.accuracy if artifact is None else artifact.baseline_accuracy
        detail = "" if before is None else f"baseline {words.metric(report, before)}"
        if before is not None:
            detail += f" ({words.metric_change(report, before, found['accuracy'])})"
        result.append(Tile(words.metric(report, found["accuracy"]), f"{report.metric} ({report.split})", detail))
    return result


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"
