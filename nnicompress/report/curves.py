"""Training curves, recorded from a run's events."""

from __future__ import annotations

from nnicompress.events import EpochDone, Event, StageStarted, StepDone, TrainingFinished, TrainingStarted
from nnicompress.report.record import CurveRecord

MOST_POINTS = 300


class CurveRecorder:
    """A listener that keeps losses and metrics by training; `curves()` gives them, thinned for the report."""

    def __init__(self) -> None:
        self._stage = ""
        self._trainings: list[_Training] = []

    def __call__(self, event: Event) -> None:
        """Hear one event."""
        match event:
            case StageStarted():
                self._stage = event.name
            case TrainingStarted():
                self._trainings.append(_Training(self._stage))
            case StepDone() if self._trainings:
                self._trainings[-1].losses.append(event.loss)
            case EpochDone() if self._trainings:
                self._trainings[-1].epochs.append((len(self._trainings[-1].losses), dict(event.metrics)))
            case TrainingFinished() | _:
                pass

    def curves(self) -> tuple[CurveRecord, ...]:
        """One record a training that made at least one step, in the order of the run."""
        return tuple(training.record() for training in self._trainings if training.losses)


class _Training:
    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.losses: list[float] = []
        self.epochs: list[tuple[int, dict[str, float]]] = []

    def record(self) -> CurveRecord:
        """Each point is the mean of the steps up to it, so that thinning smooths and hides nothing."""
        count = len(self.losses)
        points = min(count, MOST_POINTS)
        ends = [round((i + 1) * count / points) for i in range(points)]
        starts = [0, *ends[:-1]]
        return CurveRecord(
            stage=self.stage,
            total_steps=count,
            steps=tuple(ends),
            losses=tuple(sum(self.losses[a:b]) / (b - a) for a, b in zip(starts, ends, strict=True)),
            epoch_steps=tuple(step for step, _ in self.epochs),
            metrics=tuple(metrics for _, metrics in self.epochs),
        )
