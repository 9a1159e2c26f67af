"""What a run's report holds, as data: `report.json` and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from nnicompress.errors import UserError

REPORT_FILE = "report.json"


class Record(BaseModel):
    """A frozen record; keys that this version doesn't know are an error, so that nothing is lost in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class LatencyRecord(Record):
    """Seconds of one forward pass at `batch_size`: the median and the quartiles around it, over `repeats` passes."""

    batch_size: int
    median: float
    low: float
    high: float
    repeats: int


class PhaseRecord(Record):
    """The model at one moment of the run, run eagerly; None where it was not measured."""

    name: str
    """`baseline`, `pruned`, `shrunk`, `finetuned`."""
    label: str
    masked: bool
    """Whether masks are all that was done so far: zeros in place, the same shapes."""
    parameters: int
    zeros: int
    """How many of the parameters are exactly zero."""
    macs: int | None
    """Multiply-accumulates of one sample (1 MAC = 2 FLOPs); None where the model could not be captured."""
    bytes: int
    """Size of the safetensors file of the weights."""
    accuracy: float | None = None
    """The metric on the test data."""
    validation: float | None = None
    latency: tuple[LatencyRecord, ...] = ()
    peak_memory: int | None = None
    """Bytes that PyTorch's allocator held at the worst moment of one forward pass at the recipe's batch, weights
    included."""

    def latency_at(self, batch_size: int) -> LatencyRecord | None:
        """The latency at `batch_size`, or None."""
        return next((latency for latency in self.latency if latency.batch_size == batch_size), None)


class FloatOperatorsRecord(Record):
    """Operators of an exported file that compute in float, of one type and for one reason."""

    operator: str
    count: int
    reason: str


class ArtifactRecord(Record):
    """An exported file, loaded again and measured in its own runtime, beside the baseline exported the same way."""

    format: str
    """`pt2` or `onnx`."""
    path: str
    """Relative to the run's folder."""
    runtime: str
    bytes: int
    baseline_bytes: int | None = None
    max_relative_difference: float
    """Of its outputs to the eager model's."""
    accuracy: float | None = None
    baseline_accuracy: float | None = None
    latency: tuple[LatencyRecord, ...] = ()
    baseline_latency: tuple[LatencyRecord, ...] = ()
    peak_memory: int | None = None
    """Bytes that loading and running the file adds to an empty process of the runtime, at the recipe's batch."""
    baseline_peak_memory: int | None = None
    integer: dict[str, int] = {}
    """Of a quantized model: the operators that the runtime runs in integers, by type."""
    floating: tuple[FloatOperatorsRecord, ...] = ()
    """The other operators that compute."""


class QuantizedLayerRecord(Record):
    """The types of a layer's tensors, or of a call's in a forward; empty where one stays in float."""

    name: str
    inputs: str = ""
    weight: str = ""
    output: str = ""


class TrialRecord(Record):
    """The validation metric with some parts of the quantized model in float."""

    in_float: tuple[str, ...]
    metric: float
    holds: bool
    """Whether it is within the bound."""


class ControlRecord(Record):
    """How accuracy control chose what stays in float."""

    max_drop: float
    baseline: float
    """The validation metric before quantization."""
    metric: float
    """With what was chosen."""
    met: bool
    """Whether the bound holds."""
    parts: int
    """How many there are: layers, and matrix products of a forward."""
    in_float: tuple[str, ...]
    """The parts that stay in float."""
    trials: tuple[TrialRecord, ...]
    """All that was measured, from all in integers to all in float."""


class QuantizationRecord(Record):
    """How the model is quantized."""

    method: str
    backend: str
    summary: str
    layers: tuple[QuantizedLayerRecord, ...] = ()
    unquantized: tuple[str, ...] = ()
    """What was selected and stays in float, one line each, with the reason."""
    control: ControlRecord | None = None
    """null: no bound was set."""


class PhaseMeasurements(Record):
    """What `evaluate` measures of one phase; see PhaseRecord."""

    accuracy: float | None = None
    validation: float | None = None
    latency: tuple[LatencyRecord, ...] = ()
    peak_memory: int | None = None


class Measurements(Record):
    """All that an `evaluate` stage measured."""

    phases: dict[str, PhaseMeasurements]
    artifacts: tuple[ArtifactRecord, ...] = ()


class LayerRecord(Record):
    """One width of the network (the channels of the layers that share it), or one tensor, before and after."""

    name: str
    unit: str = "channels"
    """`channels`, `weights` where single weights were pruned, or the groups that were (`heads`)."""
    before: int
    after: int
    asked: int | None = None
    """How many the settings asked to remove; None where the width was no target."""
    note: str = ""
    """Why less was removed than asked."""


class ProofRecord(Record):
    """The comparison of the compact with the masked model on real inputs."""

    max_relative_difference: float
    tolerance: float
    precision: str
    batch_sizes: tuple[int, ...]
    seconds: float


class CurveRecord(Record):
    """One training as it went: losses of (at most a few hundred evenly spread) steps, metrics of each epoch."""

    stage: str
    total_steps: int
    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    epoch_steps: tuple[int, ...] = ()
    """The step at which each epoch ended."""
    metrics: tuple[dict[str, float], ...] = ()


class StageRecord(Record):
    """A finished stage: its wall time and what it says of itself."""

    name: str
    seconds: float
    """The last process's share, where a stage was continued after a kill."""
    reused: bool = False
    """Whether an earlier run's result was taken, because nothing that it depends on has changed."""
    facts: dict[str, Any] = {}


class ExpectedRecord(Record):
    """One line of the recipe's `expected:` block beside what was measured (None: not measured, hence missed)."""

    name: str
    bound: str
    measured: float | None
    ok: bool


class Report(Record):
    """Everything a run measured. `baseline` and `final` are the first and the last phase."""

    version: int = 1
    name: str
    summary: str = ""
    run_dir: str
    seed: int
    smoke: bool = False
    started: str
    """ISO 8601, UTC."""
    seconds: float
    device: str
    threads: int
    precision: str
    machine: str
    versions: dict[str, str]
    batch_size: int
    metric: str
    mode: str
    split: str
    """Which data the accuracy was read from."""
    stages: tuple[StageRecord, ...]
    phases: tuple[PhaseRecord, ...]
    artifacts: tuple[ArtifactRecord, ...] = ()
    layers: tuple[LayerRecord, ...] = ()
    pruned: str = ""
    """What share was removed of what, in one line."""
    shortfall: tuple[str, ...] = ()
    """Where less was pruned than asked in all: which layers and why; empty where the whole was reached."""
    unprunable: tuple[str, ...] = ()
    """What was selected and could not be pruned, one line each, with the reason."""
    proof: ProofRecord | None = None
    quantization: QuantizationRecord | None = None
    curves: tuple[CurveRecord, ...] = ()
    expected: tuple[ExpectedRecord, ...] = ()

    @property
    def baseline(self) -> PhaseRecord:
        """The model before any compression."""
        return self.phases[0]

    @property
    def final(self) -> PhaseRecord:
        """The model that the run hands over."""
        return self.phases[-1]

    @property
    def masked_only(self) -> bool:
        """Whether the run compressed by masks alone."""
        return self.final.masked

    @property
    def met(self) -> bool:
        """Whether every bound of `expected:` holds."""
        return all(row.ok for row in self.expected)

    def save(self, path: Path) -> None:
        """Write to `path` (a file) atomically."""
        temporary = path.with_name(f".{path.name}.partial")
        temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A report from its file, or from the folder that it lies in.

        Raises:
            UserError: there is no such report.
        """
        path = Path(path)
        file = path / REPORT_FILE if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                f"{file}: no such report; give the folder of a finished run, as in `nnicompress show runs/...`"
            )
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is no report of this version; give the folder of a finished run") from error
