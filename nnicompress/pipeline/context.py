"""What stages hand on to each other while a job runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nnicompress.evaluators.contract import ModelInput
from nnicompress.events import Listener
from nnicompress.export.comparison import on_device
from nnicompress.pipeline.checkpoint import Checkpoint
from nnicompress.pipeline.job import Job, StagePlan
from nnicompress.pipeline.run_dir import RunFolder
from nnicompress.pipeline.stopping import Stop
from nnicompress.pipeline.weights import WEIGHTS, load_weights, save_weights
from nnicompress.quantization.frozen import FrozenModel
from nnicompress.report.curves import CurveRecorder

if TYPE_CHECKING:
    from nnicompress.pruning.pruner import PruningResult
    from nnicompress.quantization.result import QuantizationResult
    from nnicompress.report.record import ArtifactRecord, LatencyRecord
    from nnicompress.shrink.proof import Proof

EXPORT_BATCH_SIZE = 2
"""Samples that a model is captured on: one is special to torch.export."""
SPLIT = "test"
"""The role that the report's metric is read from."""

Facts = dict[str, Any]
"""What a stage says of itself, JSON-able; it becomes the `facts` of the report's stage."""


@dataclass
class Phase:
    """The model as it was at one moment, kept for the comparison; measurements are filled in by `evaluate`."""

    name: str
    label: str
    masked: bool
    model: nn.Module
    network: nn.Module
    """What is counted: the model itself, or the same network in float where the model computes in quantized numbers.

    Its speed and memory are then those of neither float nor integer kernels, and are not measured.
    """
    bytes: int
    accuracy: float | None = None
    validation: float | None = None
    latency: tuple[LatencyRecord, ...] = ()
    peak_memory: int | None = None

    @property
    def timed(self) -> bool:
        """Whether its speed is that of the operators that it is made of."""
        return self.network is self.model


@dataclass(frozen=True)
class Exported:
    """A file in the run's folder, as it was loaded again, and its largest relative difference to the eager model."""

    path: Path
    loaded: nn.Module
    max_relative_difference: float


@dataclass
class Context:
    """The state of a running job. `folder` is the running stage's temporary folder, or that of a reused one."""

    job: Job
    run: RunFolder
    listener: Listener
    device: torch.device
    model: nn.Module
    folder: Path
    curves: CurveRecorder = field(default_factory=CurveRecorder)
    stop: Stop = field(default_factory=Stop)
    checkpoint: Checkpoint = field(init=False)
    """The saved state of the running stage."""
    began_before: bool = False
    """Whether the running stage was begun by an earlier process."""
    phases: list[Phase] = field(default_factory=list)
    pruning: PruningResult | None = None
    quantization: QuantizationResult | None = None
    masked: bool = False
    """Whether masks are in force: pruned and not shrunk."""
    proof: Proof | None = None
    exported: dict[str, Exported] = field(default_factory=dict)
    """By format."""
    artifacts: list[ArtifactRecord] = field(default_factory=list)

    def add_phase(self, name: str, label: str) -> None:
        """Keep a copy of the model as it is now and write its weights into the stage's folder."""
        self.remember(name, label, save_weights(self.model, self.folder))

    def restore_phase(self, name: str, label: str) -> None:
        """Fill the model with the weights in a reused stage's folder, and keep a copy as `add_phase` does."""
        load_weights(self.model, self.folder)
        self.remember(name, label, (self.folder / WEIGHTS).stat().st_size)

    def remember(self, name: str, label: str, size: int, network: nn.Module | None = None) -> None:
        """Keep a copy of the model as it is now, whose weights take `size` bytes; `network`: see `Phase`."""
        model = copy.deepcopy(self.model).eval()
        self.phases.append(Phase(name, label, self.masked, model, model if network is None else network, size))

    def inputs(self, plan: StagePlan, *batch_sizes: int, device: torch.device | str | None = None) -> list[ModelInput]:
        """Real inputs of the model, a batch of each size, on the job's device or another.

        They are those of the network in float: an evaluator can begin a training of that one.
        """
        evaluator = plan.build_evaluator(self.listener)
        with evaluator.bound(self.phases[-1].network if isinstance(self.model, FrozenModel) else self.model):
            found = [evaluator.example_inputs(size) for size in batch_sizes]
        return [on_device(inputs, self.device if device is None else device) for inputs in found]


@dataclass(frozen=True)
class Stage:
    """What a stage does."""

    run: Callable[[Context, StagePlan], Facts]
    """Change the context, write what the stage leaves into `context.folder`, and say what it did."""
    restore: Callable[[Context, StagePlan, Facts], None]
    """Change the context as `run` did, from what it left in `context.folder` and said."""


Stages = Mapping[str, Stage]
