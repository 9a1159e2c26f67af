"""What a run tells the world while it works; progress bars, curves and logs are listeners of these events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageStarted:
    """Stage `index` (from 1) of `total` begins."""

    name: str
    index: int
    total: int


@dataclass(frozen=True)
class StageFinished:
    """A stage ended well after `seconds` of wall time."""

    name: str
    seconds: float


@dataclass(frozen=True)
class StageResumed:
    """The stage goes on where a killed run left it, after `steps` optimizer steps over all of its trainings."""

    steps: int


@dataclass(frozen=True)
class TrainingStarted:
    """A training begins; `total_steps` is None where the user's loop does not let us know."""

    total_steps: int | None


@dataclass(frozen=True)
class StepDone:
    """One optimizer step is done; `step` counts from 1 within this training."""

    step: int
    loss: float
    learning_rate: float
    epoch: float | None = None


@dataclass(frozen=True)
class EpochDone:
    """An epoch is done (counted from 1), with the metrics measured on the validation data."""

    epoch: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingFinished:
    """A training ended after `steps` optimizer steps."""

    steps: int


@dataclass(frozen=True)
class Measured:
    """Measurement `number` (from 1) of `total` of an analysis is there; `what` says of what."""

    number: int
    total: int
    what: str


@dataclass(frozen=True)
class Note:
    """One line for the person who watches; `warning` marks what needs attention."""

    text: str
    warning: bool = False


Event = (
    StageStarted
    | StageFinished
    | StageResumed
    | TrainingStarted
    | StepDone
    | EpochDone
    | TrainingFinished
    | Measured
    | Note
)
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """The listener that hears nothing; the default of the Python API."""
