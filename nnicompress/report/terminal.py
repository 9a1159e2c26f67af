"""The report on a terminal: tables that hold beside each other what the run started from and what it ended with."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from nnicompress.report import words
from nnicompress.report.record import Report
from nnicompress.report.rows import Comparison, comparison, file_table, integer_lines, quality_chain, quantized_rows


def print_report(report: Report, console: Console | None = None) -> None:
    """Print `report`; the first line is the result."""
    (console or Console(highlight=False)).print(render(report))


def render(report: Report) -> RenderableType:
    """Everything that is printed, as one renderable."""
    title = Text.assemble((report.name, "bold"), (f"  {report.summary}" if report.summary else "", "dim"))
    parts: list[RenderableType] = [Text(words.headline(report), style="bold"), title, Text("")]
    if report.smoke:
        parts.insert(0, Text("Smoke run: two batches a stage. The numbers mean nothing.", style="bold yellow"))
    parts.append(_phases(report))
    parts += [
        table
        for table in (_artifacts(report), _quantized(report), *_layers(report), _expected(report))
        if table is not None
    ]
    parts += [Text(line, style="dim") for line in _remarks(report)]
    return Group(*parts)


def _phases(report: Report) -> Table:
    found: Comparison = comparison(report)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for label in found.columns:
        table.add_column(label, justify="right")
    if found.ratios:
        table.add_column("ratio", justify="right", no_wrap=True)
    for row in found.rows:
        cells = [_over_spread(*pair) for pair in zip(row.cells, row.spreads or [""] * len(row.cells), strict=True)]
        ratio = (Text(row.ratio, style="bold"),) if found.ratios else ()
        table.add_row(Text(row.label, style="dim"), *cells, *ratio)
    return table


def _artifacts(report: Report) -> Table | None:
    if not report.artifacts:
        return None
    found = file_table(report)
    table = _titled("Exported files, beside the baseline exported the same way")
    table.add_column("", no_wrap=True)
    table.add_column("runtime", no_wrap=True)
    memory = ("memory",) if found.memory else ()
    for name in (report.metric, "bytes", *memory, *(f"latency, batch {size}" for size in found.batch_sizes)):
        table.add_column(name, justify="right")
    for row in found.rows:
        latencies = (_over_spread(*pair) for pair in zip(row.latencies, row.spreads, strict=True))
        style = "bold" if row.is_gain else ""
        memory = (row.memory,) if found.memory else ()
        table.add_row(row.name, row.runtime, row.accuracy, row.bytes, *memory, *latencies, style=style)
    return table


def _over_spread(value: str, spread: str) -> Text:
    return Text.assemble(value, (f"\n{spread}", "dim")) if spread else Text(value)


def _layers(report: Report) -> Iterator[Table]:
    """A table for each unit: heads, then channels."""
    for unit in dict.fromkeys(layer.unit for layer in report.layers):
        layers = [layer for layer in report.layers if layer.unit == unit]
        table = _titled(f"{unit.capitalize()} kept")
        table.add_column("layer", no_wrap=True)
        table.add_column("before", justify="right")
        table.add_column("after", justify="right")
        table.add_column("")
        table.add_column("why less was removed than asked" if any(layer.note for layer in layers) else "")
        for layer in layers:
            kept = round(20 * layer.after / layer.before)
            bar = Text.assemble(("━" * kept, "cyan"), ("·" * (20 - kept), "bright_black"))
            table.add_row(layer.name, str(layer.before), str(layer.after), bar, Text(layer.note, style="yellow"))
        yield table


def _quantized(report: Report) -> Table | None:
    rows = quantized_rows(report)
    if not rows:
        return None
    table = _titled("Quantized, each value where it first is")
    table.add_column("layers and calls", no_wrap=True)
    for name in ("inputs", "weight", "output"):
        table.add_column(name)
    for row in rows:
        more = f" and {row.count - 1} more" if row.count > 1 else ""
        table.add_row(f"{row.example}{more}", *(kind or words.MISSING for kind in (row.inputs, row.weight, row.output)))
    return table


def _expected(report: Report) -> Table | None:
    if not report.expected:
        return None
    table = _titled("Expected")
    for name in ("", "number", "bound", "measured"):
        table.add_column(name, justify="right" if name == "measured" else "left")
    for row in report.expected:
        mark = Text("✓", style="green") if row.ok else Text("✗", style="bold red")
        table.add_row(mark, row.name, row.bound, words.MISSING if row.measured is None else f"{row.measured:.4g}")
    return table


def _titled(title: str) -> Table:
    return Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False,
                 header_style="dim", padding=(0, 2, 0, 0))  # fmt: skip


def _remarks(report: Report) -> Iterator[str]:
    yield ""
    if report.pruned:
        yield f"{report.pruned[0].upper()}{report.pruned[1:]}."
    for line in report.shortfall:
        yield f"Less than asked: {line}"
    for line in report.unprunable:
        if line not in report.shortfall:
            yield f"Not pruned: {line}"
    if chain := quality_chain(report):
        yield f"{report.metric.capitalize()}: {' → '.join(f'{value} {what}' for what, value in chain)}."
    yield from integer_lines(report)
    if report.quantization is not None:
        for line in report.quantization.unquantized:
            yield f"Left in float: {line}"
        if report.quantization.control is not None:
            yield words.controlled(report.quantization.control, report)
    if report.proof is not None:
        yield (
            f"Proof: compact and masked outputs differ by {report.proof.max_relative_difference:.1e} at most "
            f"({report.proof.tolerance:.0e} allowed, {report.proof.precision}, "
            f"batch sizes {' and '.join(map(str, report.proof.batch_sizes))})."
        )
    yield from conventions(report)
    times = ", ".join(f"{stage.name} {words.seconds(stage.seconds)}" for stage in report.stages)
    yield f"{words.seconds(report.seconds)} in all: {times}."
    yield f"{report.run_dir}: report.html, report.json, model/"


def conventions(report: Report) -> Iterator[str]:
    """How the numbers were taken, one sentence each; only what this report holds."""
    threads = f"{report.threads} thread{'s' if report.threads != 1 else ''}"
    if any(phase.latency for phase in report.phases):
        yield (
            f"Latency: median (quartiles) of one forward pass, all models in turn in one process, on {report.device} "
            f"with {threads}. The columns are eager PyTorch."
        )
    if any(phase.macs is not None for phase in report.phases):
        yield "Multiply-accumulates: of one sample, convolutions and matrix products; 1 MAC is 2 FLOPs."
    if any(phase.peak_memory is not None for phase in report.phases):
        yield (
            f"Peak memory: all tensors alive at the worst moment of one forward pass at batch {report.batch_size}, "
            "weights included."
        )
    if any(artifact.peak_memory is not None for artifact in report.artifacts):
        yield (
            f"Memory of a file: what a process of its runtime takes to load it and run batch {report.batch_size}, at "
            "the worst moment."
        )
