"""A report with round numbers, for the tests of what renders it."""

from __future__ import annotations

from typing import Any

from nnicompress.report.expected import compare, summary_numbers
from nnicompress.report.record import (
    ArtifactRecord,
    CurveRecord,
    FloatOperatorsRecord,
    LatencyRecord,
    LayerRecord,
    PhaseRecord,
    ProofRecord,
    QuantizationRecord,
    QuantizedLayerRecord,
    Report,
    StageRecord,
)
from nnicompress.report.settings import ExpectedSettings


def latency(batch_size: int, median: float) -> LatencyRecord:
    """Quartiles 5 % around the median."""
    return LatencyRecord(batch_size=batch_size, median=median, low=0.95 * median, high=1.05 * median, repeats=50)


def phase(name: str, label: str, **changes: Any) -> PhaseRecord:
    """A phase of a network with a million parameters, not compressed unless `changes` say so."""
    values: dict[str, Any] = {
        "masked": False,
        "parameters": 1_000_000,
        "zeros": 0,
        "macs": 8_000_000,
        "bytes": 4_000_000,
        "accuracy": 0.98,
        "validation": 0.97,
        "latency": (latency(1, 0.002), latency(32, 0.020)),
        "peak_memory": 10_000_000,
    }
    return PhaseRecord(name=name, label=label, **{**values, **changes})


SMALL: dict[str, Any] = {
    "parameters": 400_000,
    "macs": 4_000_000,
    "bytes": 1_600_000,
    "latency": (latency(1, 0.0016), latency(32, 0.010)),
    "peak_memory": 6_000_000,
}
PHASES = (
    phase("baseline", "baseline"),
    phase("pruned", "pruned (masked)", masked=True, zeros=600_000, accuracy=0.5, validation=0.5),
    phase("shrunk", "shrunk", **SMALL, accuracy=0.5, validation=0.5),
    phase("finetuned", "fine-tuned", **SMALL, accuracy=0.96, validation=0.95),
)
ARTIFACT = ArtifactRecord(
    format="pt2",
    path="model.pt2",
    runtime="torch.export",
    bytes=1_700_000,
    baseline_bytes=4_100_000,
    max_relative_difference=1e-7,
    accuracy=0.96,
    baseline_accuracy=0.98,
    latency=(latency(1, 0.0015), latency(32, 0.008)),
    baseline_latency=(latency(1, 0.002), latency(32, 0.020)),
)


def make_report(expected: dict[str, Any] | None = None, **changes: Any) -> Report:
    """A whole report; `changes` replace fields."""
    values: dict[str, Any] = {
        "name": "small",
        "summary": "A <small> network & its report",
        "run_dir": "runs/small",
        "seed": 0,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 75.0,
        "device": "cpu",
        "threads": 1,
        "precision": "float32",
        "machine": "a processor, 2 cores",
        "versions": {"torch": "2.13.0"},
        "batch_size": 32,
        "metric": "accuracy",
        "mode": "max",
        "split": "test",
        "stages": (StageRecord(name="train", seconds=60.0), StageRecord(name="prune", seconds=15.0)),
        "phases": PHASES,
        "artifacts": (ARTIFACT,),
        "layers": (
            LayerRecord(name="conv1", before=16, after=8, asked=8),
            LayerRecord(name="conv2", before=32, after=32, asked=6, note="its width <is> fixed"),
        ),
        "unprunable": ("fc: the model's output",),
        "proof": ProofRecord(
            max_relative_difference=1e-15, tolerance=1e-9, precision="float64", batch_sizes=(2, 3), seconds=0.1
        ),
        "curves": (
            CurveRecord(
                stage="train",
                total_steps=4,
                steps=(1, 2, 3, 4),
                losses=(2.0, 1.0, 0.5, 0.1),
                epoch_steps=(2, 4),
                metrics=({"default": 0.6}, {"default": 0.97}),
            ),
            CurveRecord(stage="finetune", total_steps=2, steps=(1, 2), losses=(0.4, 0.2)),
        ),
    }
    values.update(changes)
    numbers = summary_numbers(
        values["phases"], values["artifacts"], batch_size=values["batch_size"], mode=values["mode"]
    )
    rows = compare(ExpectedSettings.model_validate(expected or {}), numbers)
    return Report(**{**values, "expected": rows})


def quantized_report(**changes: Any) -> Report:
    """A network of three layers in 8 bits, twice as fast in its runtime; `changes` replace fields of the file."""
    phases = (
        phase("baseline", "baseline"),
        phase("quantized", "fake-quantized", accuracy=0.97, latency=(), peak_memory=None),
        phase("frozen", "frozen", accuracy=0.97, latency=(), peak_memory=None, bytes=1_040_000),
    )
    file = {
        "format": "onnx",
        "path": "model.onnx",
        "runtime": "onnxruntime",
        "accuracy": 0.965,
        "latency": (latency(1, 0.001), latency(32, 0.010)),
        "integer": {"QLinearConv": 2, "QGemm": 1},
        "floating": (FloatOperatorsRecord(operator="Softmax", count=3, reason="no integer kernel"),),
        "peak_memory": 5_000_000,
        "baseline_peak_memory": 9_000_000,
    }
    layers = (
        QuantizedLayerRecord(name="conv1", inputs="uint8", weight="int8"),
        QuantizedLayerRecord(name="conv2", weight="int8"),
        QuantizedLayerRecord(name="fc", weight="int8"),
    )
    return make_report(
        phases=phases,
        artifacts=(ARTIFACT.model_copy(update={**file, **changes}),),
        layers=(),
        unprunable=(),
        proof=None,
        quantization=QuantizationRecord(
            method="observed",
            backend="onnxruntime_x86",
            summary="quantized 4 tensors (3 int8, 1 uint8)",
            layers=layers,
            unquantized=("head: <its> output is complex",),
        ),
    )
