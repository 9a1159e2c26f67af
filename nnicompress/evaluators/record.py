"""What a training tells while it runs, and what is left of it: losses, metrics, events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nnicompress.evaluators.contract import TrainResult
from nnicompress.evaluators.session import Step
from nnicompress.events import EpochDone, Listener, StepDone


class EngineTraining(Protocol):
    """A training in progress, or done."""

    def state_dict(self) -> dict[str, Any]:
        """All that the training needs to go on but the model's weights; `torch.load(weights_only=True)` reads it."""


class Record:
    """Losses (one a step) and metrics (one an epoch) so far; steps and epochs are told to the listener."""

    def __init__(self, listener: Listener, per_epoch: int | None, resume: Mapping[str, Any] | None = None) -> None:
        """`per_epoch`: optimizer steps in an epoch, where known; `resume`: what `state_dict` returned."""
        self.listener, self.per_epoch = listener, per_epoch
        self.losses: list[float] = list(resume["losses"]) if resume else []
        self.metrics: list[Mapping[str, float]] = list(resume["metrics"]) if resume else []

    def step_done(self, step: Step) -> None:
        """A step is over, its scheduler's step included, and its loss is there."""
        self.losses.append(step.loss)
        self.listener(StepDone(step.number, step.loss, step.learning_rate, self.epochs(step.number)))

    def epoch_done(self, event: EpochDone) -> None:
        """An epoch is over and validated."""
        self.metrics.append(event.metrics)
        self.listener(event)

    def epochs(self, steps: int) -> float | None:
        """So many steps in epochs, where known."""
        return None if self.per_epoch is None else steps / self.per_epoch

    def result(self, steps: int) -> TrainResult:
        """What the training did."""
        return TrainResult(steps, self.epochs(steps), tuple(self.losses), tuple(self.metrics))

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"losses": list(self.losses), "metrics": [dict(metrics) for metrics in self.metrics]}
