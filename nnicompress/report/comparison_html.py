"""A page that compares runs: one file with everything in it, readable in light and dark, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from nnicompress.pipeline.run_dir import write_whole
from nnicompress.report import words
from nnicompress.report.comparison import RunComparison, best_line, change, remark, setting
from nnicompress.report.comparison_table import RATIOS
from nnicompress.report.pages import render

TEMPLATE = "comparison.html.j2"


def write_comparison(comparison: RunComparison, path: Path, *, title: str, lines: Sequence[str] = ()) -> None:
    """Write the page to `path` atomically; `lines` stand below its headline."""
    write_whole(path, render_comparison(comparison, title=title, lines=lines).encode())


def render_comparison(comparison: RunComparison, *, title: str, lines: Sequence[str] = ()) -> str:
    """The whole page."""
    from nnicompress.report.pareto import trade_offs  # matplotlib takes a while to import, and only a page has figures

    first = next((entry.report for entry in comparison.done), None)
    return render(
        TEMPLATE,
        title=title,
        lines=lines,
        headline=best_line(comparison),
        metric="metric" if first is None else first.metric,
        comparison=comparison,
        ratios=RATIOS,
        words=words,
        change=change,
        remark=remark,
        setting=setting,
        # The figures are XML already, written by a library that escapes.
        figures=[Markup(drawing) for drawing in trade_offs(comparison)],
    )
