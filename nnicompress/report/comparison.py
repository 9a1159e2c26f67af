"""Several runs side by side, as data: what each reached against its baseline, and where their settings differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnicompress.errors import UserError
from nnicompress.pipeline.run_dir import MANIFEST_FILE, read_status
from nnicompress.report import words
from nnicompress.report.record import REPORT_FILE, Report

# Where a run lies and what it is called, not how it was made.
_NO_SETTING = frozenset({"run_dir", "summary"})
MISSING = object()
"""The value of a key that a run's settings don't have."""


@dataclass(frozen=True)
class Entry:
    """One run. `report` is there where the state is `done`."""

    label: str
    folder: Path
    state: str
    """`done`, `smoke`, `running`, `failed`, `interrupted`, `unreadable`, or `no report`."""
    error: str = ""
    report: Report | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, float | None]:
        """Final against baseline, by the names of `expected:`; empty without a report."""
        return {} if self.report is None else words.numbers(self.report)

    @property
    def value(self) -> float | None:
        """The recipe's metric; None where it was not measured, or is no number."""
        accuracy = self.numbers.get("accuracy")
        return None if accuracy is None or math.isnan(accuracy) else accuracy


@dataclass(frozen=True)
class Difference:
    """A key of the settings and its value in each run, in the order of the comparison; None: all have the same."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class RunComparison:
    """Runs in order, best first where they share a metric; those without a result come last."""

    entries: tuple[Entry, ...]
    differences: tuple[Difference, ...]
    metrics: tuple[str, ...]
    """What the runs were measured by, each with its direction; several can't be put in one order."""

    @property
    def done(self) -> tuple[Entry, ...]:
        """The runs that have a result."""
        return tuple(entry for entry in self.entries if entry.report is not None)

    @property
    def ordered(self) -> bool:
        """Whether all results are of one metric, so that the first is the best."""
        return len(self.metrics) == 1


def read_entry(folder: Path, *, label: str | None = None) -> Entry:
    """The run in `folder`, whatever its state."""
    label = str(folder) if label is None else label
    config, status = _config(folder), read_status(folder)
    if status is not None and status.state != "done":
        where = f"in {status.stage}" if status.stage else ""
        error = ": ".join(part for part in (where, status.error or "") if part)
        return Entry(label, folder, status.state, error, config=config)
    if not (folder / REPORT_FILE).is_file():
        return Entry(label, folder, "no report", config=config)
    try:
        report = Report.load(folder)
    except UserError as error:
        return Entry(label, folder, "unreadable", str(error), config=config)
    if report.smoke:
        return Entry(label, folder, "smoke", "two batches a stage: its numbers mean nothing", config=config)
    return Entry(label, folder, "done", report=report, config=config)


def compare_runs(entries: Sequence[Entry]) -> RunComparison:
    """The runs, best first by their metric; runs of different metrics stay in the order given."""
    done = [entry for entry in entries if entry.report is not None]
    metrics = sorted({f"{r.metric} ({r.split}, {r.mode})" for e in done if (r := e.report) is not None})
    if len(metrics) == 1:
        done.sort(key=_worth, reverse=True)
    ordered = [*done, *(entry for entry in entries if entry.report is None)]
    return RunComparison(tuple(ordered), tuple(differences(ordered)), tuple(metrics))


def differences(entries: Sequence[Entry]) -> Iterator[Difference]:
    """Every dotted key that not all runs have with the same value; runs without settings on disk have none."""
    flat = [dict(_flat(entry.config)) for entry in entries]
    known = [one for one in flat if one]
    for key in dict.fromkeys(key for one in known for key in one):
        if key.split(".")[0] not in _NO_SETTING and any(
            one.get(key, MISSING) != known[0].get(key, MISSING) for one in known
        ):
            yield Difference(key, tuple(one.get(key, MISSING) for one in flat))


def best_line(comparison: RunComparison) -> str:
    """The first run in a sentence; why there is no best one where there is none."""
    if not comparison.done:
        return "No run has a result."
    if not comparison.ordered:
        return f"No order: the runs are measured by {' and by '.join(comparison.metrics)}."
    entry = comparison.entries[0]
    report = entry.report
    assert report is not None
    if entry.value is None:
        return f"No order: no {report.metric} was measured."
    share = entry.numbers["macs_ratio"]
    cost = "" if share is None else f" with {100 * share:.0f} % of the multiply-accumulates"
    return f"Best: {entry.label}, {report.metric} {words.metric(report, entry.value)}{cost}."


def change(entry: Entry) -> str:
    """The metric against the baseline's, measured the same way: `−0.8 points`."""
    drop, report = entry.numbers.get("accuracy_drop"), entry.report
    if drop is None or report is None or entry.value is None:
        return words.MISSING
    start = entry.value + drop * (1 if report.mode == "max" else -1)
    return words.metric_change(report, start, entry.value)


def remark(entry: Entry) -> str:
    """What a reader must know of a run beside its numbers."""
    report = entry.report
    if report is None:
        return f"{entry.state}: {entry.error}" if entry.error else entry.state
    remarks = []
    if report.masked_only:
        remarks.append(f"masks only, {100 * report.final.zeros / max(1, report.final.parameters):.0f} % zeros")
    if missed := [row.name for row in report.expected if not row.ok]:
        remarks.append(f"misses expected {', '.join(missed)}")
    return "; ".join(remarks)


def setting(value: Any) -> str:
    """A value as a recipe writes it; a dash where the run doesn't have the key."""
    if value is MISSING:
        return words.MISSING
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _worth(entry: Entry) -> tuple[bool, float]:
    """Larger is better; what was not measured comes last."""
    assert entry.report is not None
    value = entry.value
    return value is not None, (value or 0.0) * (1 if entry.report.mode == "max" else -1)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _config(folder: Path) -> Mapping[str, Any]:
    """The resolved settings of a run's manifest; empty where it has none yet."""
    try:
        config = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        # A run that failed early, or one made by hand: it has its row, and no settings to compare.
        return {}
    return config if isinstance(config, Mapping) else {}
