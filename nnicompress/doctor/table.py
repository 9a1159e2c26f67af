"""An examination as a table on the terminal: one line a check."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnicompress.doctor.checks import Examination

_STYLES = {"ok": "green", "missing": "yellow", "wrong": "red", "skipped": "dim"}


def print_examination(examination: Examination, console: Console) -> None:
    """Print what was found, what to do about it, and how it ended."""
    table = Table(title=f"{examination.subject}, examined as {examination.kind}", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("found", overflow="fold")
    if not examination.healthy:
        table.add_column("what to do", overflow="fold")
    for finding in examination.findings:
        cells = [Text(finding.name), Text(finding.status, _STYLES[finding.status]), Text(finding.found)]
        table.add_row(*cells, *([] if examination.healthy else [Text(finding.advice)]))
    console.print(table)
    for line in examination.notes:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n{conclusion(examination)}", markup=False, highlight=False)


def conclusion(examination: Examination) -> str:
    """One line: how many checks passed, how many didn't."""
    counts = {status: 0 for status in _STYLES}
    for finding in examination.findings:
        counts[finding.status] += 1
    if examination.healthy:
        return f"healthy: all {counts['ok']} checks passed"
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)
