"""What a terminal shows."""

import io

from rich.console import Console

from nnicompress.report.record import LayerRecord, Report
from nnicompress.report.terminal import print_report
from tests.report.sample import PHASES, latency, make_report, quantized_report


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


def test_heads_are_counted_as_heads() -> None:
    layers = (
        LayerRecord(name="query", before=4, after=1, asked=3, unit="heads"),
        LayerRecord(name="dense", before=256, after=64, asked=192, unit="feed-forward channels"),
        LayerRecord(name="embedding", before=64, after=64),
    )
    text = shown(make_report(layers=layers))
    heads, feed_forward, channels = (
        text.index(title) for title in ("Heads kept", "Feed-forward channels kept", "\nChannels kept")
    )
    assert heads < text.index("query") < feed_forward < text.index("dense") < channels < text.index("embedding")
    for name, cells in (("query", ["4", "1", "━━━━━···············"]), ("embedding", ["64", "64", "━" * 20])):
        assert [cell.strip() for cell in row(text, name) if cell.strip()] == cells


def test_masks_only_and_smoke_are_said_first() -> None:
    assert shown(make_report(phases=PHASES[:2], artifacts=())).startswith("No speed-up: masks only.")
    assert shown(make_report(smoke=True)).startswith("Smoke run: two batches a stage.")


def test_a_baseline_alone_has_no_ratios() -> None:
    text = shown(make_report(phases=PHASES[:1], artifacts=(), layers=(), proof=None, unprunable=()))
    assert "ratio" not in text and "Channels kept" not in text and "Proof" not in text


def test_a_quantized_model_is_followed_from_float_to_the_file() -> None:
    text = shown(quantized_report())
    assert text.startswith("2.00 times as fast at batch 32, with 41 % of the bytes.")
    assert (
        "Accuracy: 98.0 % baseline → 97.0 % fake-quantized → 97.0 % frozen → 96.5 % model.onnx in onnxruntime." in text
    )
    assert "model.onnx: onnxruntime runs 1 QGemm, 2 QLinearConv in integers." in text
    assert "model.onnx: 3 Softmax in float: no integer kernel." in text
    assert "Left in float: head: <its> output is complex" in text
    assert [cell.strip() for cell in row(text, "conv2 and 1 more") if cell.strip()] == ["–", "int8", "–"]
    file = [cell.strip() for cell in row(text, "model.onnx") if cell.strip()]
    assert file[:4] == ["onnxruntime", "96.5 %", "1.7 MB", "5 MB"]


def test_integers_that_are_slower_are_said_first() -> None:
    slow = quantized_report(latency=(latency(1, 0.004), latency(32, 0.040)))
    assert shown(slow).startswith("Not faster: 0.50 times the baseline's speed at batch 32, with 41 % of the bytes.")
    larger = quantized_report(bytes=4_920_000)
    assert shown(larger).startswith("2.00 times as fast at batch 32, with 120 % of the bytes.")
    unmeasured = quantized_report(latency=(), baseline_latency=())  # of the weights alone, as of any phase
    assert " with 26 % of the bytes." in shown(unmeasured)
