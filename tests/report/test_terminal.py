"""What a terminal shows."""

import io

from rich.console import Console

from nnicompress.report.record import Report
from nnicompress.report.terminal import print_report
from tests.report.sample import PHASES, make_report


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=180, highlight=False)
    print_report(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, label: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(label)).removeprefix(label).split("  ")


def test_the_first_line_is_the_result_and_the_table_compares() -> None:
    text = shown(make_report({"accuracy": {"min": 0.9}, "macs_ratio": {"max": 0.4}}))
    assert text.startswith("2.50 times as fast at batch 32")
    cells = [cell.strip() for cell in row(text, "multiply-accumulates") if cell.strip()]
    assert cells == ["8 M", "8 M", "4 M", "4 M", "0.50×"]
    assert [c.strip() for c in row(text, "latency, batch 32") if c.strip()][-1] == "0.50×"
    assert "19.0–21.0" in text and "with 1 thread" in text and "1 MAC is 2 FLOPs" in text
    assert "✓  accuracy" in text and "✗  macs_ratio" in text
    assert "its width <is> fixed" in text and "Not pruned: fc: the model's output" in text
    assert "model.pt2" in text and "2.50×" in text
    assert "1.0e-15 at most (1e-09 allowed, float64, batch sizes 2 and 3)" in text


def test_masks_only_and_smoke_are_said_first() -> None:
    assert shown(make_report(phases=PHASES[:2], artifacts=())).startswith("No speed-up: masks only.")
    assert shown(make_report(smoke=True)).startswith("Smoke run: two batches a stage.")


def test_a_baseline_alone_has_no_ratios() -> None:
    text = shown(make_report(phases=PHASES[:1], artifacts=(), layers=(), proof=None, unprunable=()))
    assert "ratio" not in text and "Channels kept" not in text and "Proof" not in text
