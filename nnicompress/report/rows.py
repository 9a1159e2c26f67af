"""The table of the phases, as text cells; the terminal and HTML show the same one."""

from __future__ import annotations

from dataclasses import dataclass

from nnicompress.report import words
from nnicompress.report.record import PhaseRecord, Report


@dataclass(frozen=True)
class Row:
    """One measure over all phases; `ratio` is final over baseline."""

    label: str
    cells: tuple[str, ...]
    ratio: str = ""
    spreads: tuple[str, ...] = ()
    """The quartiles behind each cell, for latencies."""


@dataclass(frozen=True)
class Comparison:
    """Columns are the phases in order."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    ratios: bool


def comparison(report: Report) -> Comparison:
    """All measures that the report holds, in the order: quality, size, arithmetic, time, memory."""
    phases = report.phases
    several = len(phases) > 1
    rows: list[Row] = []

    def add(label: str, cells: list[str], ratio: str = "") -> None:
        rows.append(Row(label, tuple(cells), ratio if several else ""))

    def numeric(label: str, values: list[int | None], cells: list[str]) -> None:
        first, last = values[0], values[-1]
        add(label, cells, words.ratio(last / first) if first and last is not None else "")

    for label, name in (
        (f"{report.metric} ({report.split})", "accuracy"),
        (f"{report.metric} (validation)", "validation"),
    ):
        scores: list[float | None] = [getattr(phase, name) for phase in phases]
        if any(score is not None for score in scores):
            first, last = scores[0], scores[-1]
            change = words.metric_change(report, first, last) if first is not None and last is not None else ""
            add(label, [words.metric(report, score) for score in scores], change)
    numeric("parameters", [p.parameters for p in phases], [words.count(p.parameters) for p in phases])
    if any(phase.masked for phase in phases):
        add("of these zero", [f"{100 * p.zeros / max(1, p.parameters):.0f} %" for p in phases])
    if any(phase.macs is not None for phase in phases):
        numeric("multiply-accumulates", [p.macs for p in phases], [words.count(p.macs) for p in phases])
    numeric("weights file", [p.bytes for p in phases], [words.size(p.bytes) for p in phases])
    for size in sorted({latency.batch_size for phase in phases for latency in phase.latency}):
        _add_latency(rows, phases, size)
    if any(phase.peak_memory is not None for phase in phases):
        numeric("peak memory", [p.peak_memory for p in phases], [words.size(p.peak_memory) for p in phases])
    return Comparison(tuple(phase.label for phase in phases), tuple(rows), several)


def _add_latency(rows: list[Row], phases: tuple[PhaseRecord, ...], size: int) -> None:
    found = [phase.latency_at(size) for phase in phases]
    first, last = found[0], found[-1]
    ratio = words.ratio(last.median / first.median) if first and last and len(phases) > 1 else ""
    cells, spreads = tuple(map(words.latency, found)), tuple(map(words.spread, found))
    rows.append(Row(f"latency, batch {size}", cells, ratio, spreads))


def quality_chain(report: Report) -> tuple[tuple[str, str], ...]:
    """`(what, metric)` from the float model over the simulation and the integers to each file; empty without them."""
    if report.quantization is None or report.final.accuracy is None:
        return ()
    phases = [(phase.label, words.metric(report, phase.accuracy)) for phase in report.phases if not phase.masked]
    files = [
        (f"{artifact.path} in {artifact.runtime}", words.metric(report, artifact.accuracy))
        for artifact in report.artifacts
        if artifact.accuracy is not None
    ]
    return (*phases, *files)


@dataclass(frozen=True)
class QuantizedRow:
    """Layers whose tensors have the same types; `example` is the first of them."""

    count: int
    example: str
    inputs: str
    weight: str
    output: str


def quantized_rows(report: Report) -> tuple[QuantizedRow, ...]:
    """One row for each combination of types, the most frequent first."""
    if report.quantization is None:
        return ()
    found: dict[tuple[str, str, str], list[str]] = {}
    for layer in report.quantization.layers:
        found.setdefault((layer.inputs, layer.weight, layer.output), []).append(layer.name)
    rows = [QuantizedRow(len(names), names[0], *types) for types, names in found.items()]
    return tuple(sorted(rows, key=lambda row: -row.count))


def integer_lines(report: Report) -> tuple[str, ...]:
    """What each file's runtime runs in integers, and what it doesn't and why."""
    lines = []
    for artifact in report.artifacts:
        if not artifact.integer and not artifact.floating:
            continue
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(artifact.integer.items()))
        lines.append(f"{artifact.path}: {artifact.runtime} runs {counted or 'nothing'} in integers.")
        lines += [f"{artifact.path}: {row.count} {row.operator} in float: {row.reason}." for row in artifact.floating]
    return tuple(lines)


@dataclass(frozen=True)
class FileRow:
    """An exported file, the baseline in the same format, or (`is_gain`) the speed-up between the two."""

    name: str
    runtime: str
    accuracy: str
    bytes: str
    memory: str
    latencies: tuple[str, ...]
    spreads: tuple[str, ...]
    is_gain: bool = False


@dataclass(frozen=True)
class FileTable:
    """The exported files; `batch_sizes` are the columns of latencies."""

    batch_sizes: tuple[int, ...]
    rows: tuple[FileRow, ...]
    memory: bool
    """Whether any memory was measured."""


def file_table(report: Report) -> FileTable:
    """Two rows a file, its own and its baseline's, and a third with the speed-up where both were timed."""
    sizes = tuple(sorted({latency.batch_size for artifact in report.artifacts for latency in artifact.latency}))
    rows = []
    for artifact in report.artifacts:
        own = {latency.batch_size: latency for latency in artifact.latency}
        base = {latency.batch_size: latency for latency in artifact.baseline_latency}
        rows.append(
            FileRow(
                artifact.path,
                artifact.runtime,
                words.metric(report, artifact.accuracy),
                words.size(artifact.bytes),
                words.size(artifact.peak_memory),
                tuple(words.latency(own.get(size)) for size in sizes),
                tuple(words.spread(own.get(size)) for size in sizes),
            )
        )
        if artifact.baseline_bytes is None:
            continue
        rows.append(
            FileRow(
                "baseline",
                "",
                words.metric(report, artifact.baseline_accuracy),
                words.size(artifact.baseline_bytes),
                words.size(artifact.baseline_peak_memory),
                tuple(words.latency(base.get(size)) for size in sizes),
                tuple(words.spread(base.get(size)) for size in sizes),
            )
        )
        gains = tuple(f"{base[size].median / own[size].median:.2f}×" if size in own else "" for size in sizes)
        rows.append(FileRow("speed-up", "", "", "", "", gains, ("",) * len(sizes), is_gain=True))
    return FileTable(sizes, tuple(rows), any(a.peak_memory is not None for a in report.artifacts))
