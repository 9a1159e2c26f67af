"""Training curves, recorded from a run's events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nnicompress.events import EpochDone, Event, StageStarted, StepDone, TrainingFinished, TrainingStarted
from nnicompress.report.record import CurveRecord

MOST_POINTS = 300


class CurveRecorder:
    """A listener that keeps losses and metrics by training; `curves()` gives them, thinned for the report."""

    def __init__(self) -> None:
        self._stage = ""
        self._finished: list[CurveRecord] = []
        self._trainings: list[_Training] = []
        self._continues = False

    def __call__(self, event: Event) -> None:
        """Hear one event."""
        match event:
            case StageStarted():
                self._finished += self.of_stage()
                self._stage, self._trainings = event.name, []
            case TrainingStarted() if self._continues:
                self._continues = False
            case TrainingStarted():
                self._trainings.append(_Training())
            case StepDone() if self._trainings:
                self._trainings[-1].losses.append(event.loss)
            case EpochDone() if self._trainings:
                self._trainings[-1].epochs.append((len(self._trainings[-1].losses), dict(event.metrics)))
            case TrainingFinished() | _:
                pass

    def curves(self) -> tuple[CurveRecord, ...]:
        """One record a training that made at least one step, in the order of the run."""
        return (*self._finished, *self.of_stage())

    def of_stage(self) -> tuple[CurveRecord, ...]:
        """Those of the stage at work."""
        return tuple(training.record(self._stage) for training in self._trainings if training.losses)

    def add(self, curves: Iterable[CurveRecord]) -> None:
        """Take up the curves of a stage that was not run again."""
        self._finished += curves

    def state(self) -> list[dict[str, Any]]:
        """The stage's trainings so far, the last one in progress."""
        return [{"losses": list(t.losses), "epochs": list(t.epochs)} for t in self._trainings]

    def resume(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from `state`: the next training that starts is the last one of it."""
        self._trainings = [_Training(list(t["losses"]), [tuple(epoch) for epoch in t["epochs"]]) for t in state]
        self._continues = bool(self._trainings)


class _Training:
    def __init__(
        self, losses: list[float] | None = None, epochs: list[tuple[int, dict[str, float]]] | None = None
    ) -> None:
        self.losses: list[float] = [] if losses is None else losses
        self.epochs: list[tuple[int, dict[str, float]]] = [] if epochs is None else epochs

    def record(self, stage: str) -> CurveRecord:
        """Each point is the mean of the steps up to it, so that thinning smooths and hides nothing."""
        count = len(self.losses)
        points = min(count, MOST_POINTS)
        ends = [round((i + 1) * count / points) for i in range(points)]
        starts = [0, *ends[:-1]]
        return CurveRecord(
            stage=stage,
            total_steps=count,
            steps=tuple(ends),
            losses=tuple(sum(self.losses[a:b]) / (b - a) for a, b in zip(starts, ends, strict=True)),
            epoch_steps=tuple(step for step, _ in self.epochs),
            metrics=tuple(metrics for _, metrics in self.epochs),
        )
