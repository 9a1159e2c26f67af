"""Measured numbers beside the recipe's `expected:` block, and the numbers that both are made of."""

from __future__ import annotations

from collections.abc import Sequence

from nnicompress.errors import ExpectationError
from nnicompress.report.record import ArtifactRecord, ExpectedRecord, LatencyRecord, PhaseRecord, Report
from nnicompress.report.settings import Bounds, ExpectedSettings


def summary_numbers(
    phases: Sequence[PhaseRecord], artifacts: Sequence[ArtifactRecord], *, batch_size: int, mode: str
) -> dict[str, float | None]:
    """Final against baseline, by the names of `expected:`; None where something was not measured.

    Accuracy and latency are the first exported file's where one was measured, each compared with the baseline in
    the same runtime; else the eager model's. Latency is that of `compared_latency`.
    """
    first, last = phases[0], phases[-1]
    artifact = next((a for a in artifacts if a.accuracy is not None or a.latency), None)
    served = artifact.accuracy if artifact else None
    accuracy = last.accuracy if served is None else served
    start = artifact.baseline_accuracy if artifact and artifact.baseline_accuracy is not None else first.accuracy
    drop = None if accuracy is None or start is None else (start - accuracy) * (1 if mode == "max" else -1)
    latency = compared_latency(phases, artifacts, batch_size)
    return {
        "accuracy": accuracy,
        "accuracy_drop": drop,
        "params_ratio": _ratio(last.parameters, first.parameters),
        "macs_ratio": _ratio(last.macs, first.macs),
        "latency_ratio": latency and latency[1].median / latency[0].median,
        "size_ratio": _ratio(last.bytes, first.bytes),
        "deployed_gap": None if served is None or last.accuracy is None else abs(served - last.accuracy),
    }


def compared_latency(
    phases: Sequence[PhaseRecord], artifacts: Sequence[ArtifactRecord], batch_size: int
) -> tuple[LatencyRecord, LatencyRecord] | None:
    """The baseline's latency and the result's, in one runtime and at one batch size; None where not measured.

    Of the first exported file that was timed beside its baseline, else of the eager models; at the recipe's
    `batch_size`, or at the largest one that both were measured at.
    """
    file = next((a for a in artifacts if a.latency and a.baseline_latency), None)
    before, after = (phases[0].latency, phases[-1].latency) if file is None else (file.baseline_latency, file.latency)
    first, last = ({latency.batch_size: latency for latency in found} for found in (before, after))
    common = first.keys() & last.keys()
    if not common:
        return None
    at = batch_size if batch_size in common else max(common)
    return first[at], last[at]


def compare(expected: ExpectedSettings, numbers: dict[str, float | None]) -> tuple[ExpectedRecord, ...]:
    """One row for each bound that the recipe states, in the order of the settings."""
    rows = []
    for name in type(expected).model_fields:
        bounds: Bounds | None = getattr(expected, name)
        if bounds is None:
            continue
        measured = numbers[name]
        low = bounds.min is None or (measured is not None and measured >= bounds.min)
        high = bounds.max is None or (measured is not None and measured <= bounds.max)
        rows.append(ExpectedRecord(name=name, bound=_in_words(bounds), measured=measured, ok=low and high))
    return tuple(rows)


def require_expected(report: Report) -> None:
    """Raise ExpectationError, naming every bound that is missed (exit code 3), unless all hold."""
    missed = [
        f"{row.name} is {'not measured' if row.measured is None else format(row.measured, '.4g')}, expected {row.bound}"
        for row in report.expected
        if not row.ok
    ]
    if missed:
        raise ExpectationError(f"{report.name} misses its expected numbers: " + "; ".join(missed))


def _in_words(bounds: Bounds) -> str:
    if bounds.min is not None and bounds.max is not None:
        return f"{bounds.min:g} to {bounds.max:g}"
    return f"at least {bounds.min:g}" if bounds.min is not None else f"at most {bounds.max:g}"


def _ratio(last: int | None, first: int | None) -> float | None:
    return None if last is None or not first else last / first
