"""The end of a sweep: its runs side by side, best first, and which of them failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nnicompress.errors import JobError
from nnicompress.report.comparison import Entry, compare_runs, read_entry
from nnicompress.sweep.ledger import PAGE, Ledger, Point

DIED = "its process ended without saying why"


def show_sweep(ledger: Ledger) -> list[Point]:
    """Print the table of all points that were begun, and write the page; returns the points that failed."""
    from rich.console import Console

    from nnicompress.report.comparison_html import write_comparison
    from nnicompress.report.comparison_table import print_comparison

    points = ledger.points()
    if not points:
        return []
    entries = sweep_entries(points)
    comparison = compare_runs(entries)
    console = Console(highlight=False)
    console.print(f"\n{len(points)} run{'s' if len(points) != 1 else ''} of the sweep\n", style="bold")
    print_comparison(comparison, console, settings=False)
    page = ledger.folder / PAGE
    write_comparison(comparison, page, title=f"Sweep {ledger.folder.name}")
    console.print(f"{page}: these runs, plotted with their Pareto front", soft_wrap=True)
    return [
        replace(point, error=point.error or entry.error or DIED)
        for point, entry in zip(points, entries, strict=True)
        if point.error or not point.ended
    ]


def conclude(ledger: Ledger) -> None:
    """Show the sweep; JobError with a line for each point that failed."""
    failed = show_sweep(ledger)
    if failed:
        count = len(ledger.points())
        lines = [f"  {point.name}: {point.error}" for point in failed]
        raise JobError("\n".join([f"{len(failed)} of {count} runs of the sweep failed:", *lines]))


def sweep_entries(points: Sequence[Point]) -> list[Entry]:
    """The runs of a sweep, each labelled by the overrides that not all points share."""
    shared = set.intersection(*(set(point.overrides) for point in points)) if len(points) > 1 else set()
    return [_entry(point, shared) for point in points]


def _entry(point: Point, shared: set[str]) -> Entry:
    label = " ".join(text for text in point.overrides if text not in shared) or point.name
    entry = read_entry(Path(point.run_dir), label=label)
    if point.error is None and point.ended:
        return entry
    # What an earlier run may have left in the folder is not the result of this point.
    state = entry.state if entry.state in ("running", "interrupted") and point.error is None else "failed"
    return replace(entry, state=state, error=point.error or entry.error or DIED, report=None)
