"""Several runs side by side on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from nnicompress.report import words
from nnicompress.report.comparison import Difference, Entry, RunComparison, best_line, change, remark, setting

MOST_COLUMNS = 8
"""With more runs than this, the settings are grouped by value instead."""
_NUMBERS = 84
"""How wide the columns of numbers can become, with their gaps."""
RATIOS = (("params", "params_ratio"), ("MACs", "macs_ratio"), ("size", "size_ratio"), ("latency", "latency_ratio"))


def print_comparison(comparison: RunComparison, console: Console | None = None, *, settings: bool = True) -> None:
    """Print the runs, best first, and with `settings` where their settings differ."""
    console = console or Console(highlight=False)
    console.print(render(comparison, console.width, settings=settings))


def render(comparison: RunComparison, width: int, *, settings: bool = True) -> RenderableType:
    """Everything that is printed, as one renderable for a terminal of `width` characters."""
    names = [len(entry.label) + len(remark(entry)) for entry in comparison.entries]
    legend = _NUMBERS + max(names, default=0) > width
    parts: list[RenderableType] = [Text(best_line(comparison), style="bold"), Text("")]
    parts.append(_runs(comparison, legend=legend))
    if legend:
        parts += [Text(""), _legend(comparison)]
    if comparison.done:
        parts.append(Text("\nParameters, MACs, size and latency: share of the run's own baseline.", style="dim"))
    if settings and comparison.differences:
        parts += [Text("\nWhere the settings differ", style="bold"), _settings(comparison)]
    return Group(*parts)


def _runs(comparison: RunComparison, *, legend: bool) -> Table:
    table = _table()
    names = dict.fromkeys(entry.report.metric for entry in comparison.done if entry.report is not None)
    table.add_column("", justify="right", style="dim")
    if not legend:
        table.add_column("run", no_wrap=True)
    for name in (" / ".join(names) or "metric", "change", *(title for title, _ in RATIOS), "time"):
        table.add_column(name, justify="right", no_wrap=True)
    if not legend:
        table.add_column("", no_wrap=True)
    for number, entry in enumerate(comparison.entries, start=1):
        cells: list[RenderableType] = [words.MISSING] * (len(RATIOS) + 3)
        if entry.report is not None:
            cells = [Text(words.metric(entry.report, entry.value), style="bold"), change(entry)]
            cells += [words.ratio(entry.numbers[key]) for _, key in RATIOS]
            cells.append(words.seconds(entry.report.seconds))
        table.add_row(str(number), *(cells if legend else [Text(entry.label), *cells, _remark(entry)]))
    return table


def _legend(comparison: RunComparison) -> Table:
    """What the numbers stand for, where the terminal is too narrow for it beside the numbers."""
    table = _table()
    table.add_column("", justify="right", style="dim")
    table.add_column("run", overflow="fold")
    for number, entry in enumerate(comparison.entries, start=1):
        note = _remark(entry)
        table.add_row(str(number), Text.assemble(entry.label, "  " if note else "", note))
    return table


def _remark(entry: Entry) -> Text:
    return Text(remark(entry), style="yellow" if entry.report is not None or entry.state == "smoke" else "red")


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))


def _settings(comparison: RunComparison) -> Table:
    table = _table()
    table.add_column("", overflow="fold")
    count = len(comparison.entries)
    for number in range(1, count + 1) if count <= MOST_COLUMNS else ():
        table.add_column(str(number), overflow="fold")
    if count > MOST_COLUMNS:
        table.add_column("value: runs", overflow="fold")
    for difference in comparison.differences:
        columns = list(map(setting, difference.values)) if count <= MOST_COLUMNS else ["\n".join(_grouped(difference))]
        table.add_row(Text(difference.key, style="dim"), *columns)
    return table


def _grouped(difference: Difference) -> Iterator[str]:
    """`0.4: 1, 3` for each value."""
    runs: dict[str, list[str]] = {}
    for number, value in enumerate(difference.values, start=1):
        runs.setdefault(setting(value), []).append(str(number))
    for text, numbers in runs.items():
        yield f"{text}: {', '.join(numbers)}"
