"""A run's numbers beside those of an earlier run of the same recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnicompress.report.expected import summary_numbers
from nnicompress.report.record import ExpectedRecord, Report

ACCURACY = 0.01
"""Accuracy may be another by so much; on the machine and with the versions of the earlier run it is the same."""
RATIO = 0.001
"""So may what is counted: parameters, multiply-accumulates, bytes."""
LATENCY = 0.25
"""So may the ratio of two latencies, relative to it: they are measured, and machines are noisy."""
_TOLERANCES = {"params_ratio": RATIO, "macs_ratio": RATIO, "size_ratio": RATIO}


def compare_with(earlier: Report, now: Report) -> tuple[ExpectedRecord, ...]:
    """One row for each number that the earlier run measured."""
    before, after = numbers_of(earlier), numbers_of(now)
    rows = []
    for name, value in before.items():
        if value is None:
            continue
        if name == "latency_ratio":
            tolerance = LATENCY * value
        else:
            tolerance = _TOLERANCES.get(name, ACCURACY * max(1.0, abs(value)))
        measured = after[name]
        ok = measured is not None and abs(measured - value) <= tolerance
        rows.append(ExpectedRecord(name=name, bound=f"{value:.4g} ± {tolerance:.2g}", measured=measured, ok=ok))
    return tuple(rows)


def numbers_of(report: Report) -> dict[str, float | None]:
    """The final model's numbers against the baseline's, by the names of `expected:`."""
    return summary_numbers(report.phases, report.artifacts, batch_size=report.batch_size, mode=report.mode)


def origin_differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two manifests differ besides their numbers: versions, machine, data, code; one line each."""
    lines = []
    old, new = earlier.get("versions", {}), now.get("versions", {})
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            lines.append(f"{name} was {old.get(name, 'absent')}, is {new.get(name, 'absent')}")
    places = {"machine": ("machine", "name"), "data": ("data", "fingerprint"), "git commit": ("code", "commit")}
    for what, (group, key) in places.items():
        was, now_is = earlier.get(group, {}).get(key), now.get(group, {}).get(key)
        if was != now_is:
            lines.append(f"{what} was {was or 'unknown'}, is {now_is or 'unknown'}")
    return lines
