"""Training curves as files while a run works: `logs/metrics.csv` and TensorBoard, from the run's own events.

A run that was killed goes on in the files that are there: what it does again replaces what is written of it. A stage
that runs from its start begins anew, and with it all that came after it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from nnicompress.errors import ConfigError
from nnicompress.events import (
    EpochDone,
    Event,
    Listener,
    StageResumed,
    StageStarted,
    StepDone,
    TrainingFinished,
    TrainingStarted,
)
from nnicompress.report.csv_log import CsvLog
from nnicompress.report.tensorboard_log import TensorBoardLog

FOLDER = "logs"


class Log(Protocol):
    """Where curves are written; `step` counts a stage's optimizer steps over all of its trainings, from 1."""

    def begin(self, stage: str) -> None:
        """Forget `stage` and all that was written after it: it runs from its start."""

    def resume(self, stage: str, steps: int, *, keep_metrics: bool) -> None:
        """Forget what was written of `stage` after step `steps`; without `keep_metrics` that step's metrics, too."""

    def step(self, stage: str, step: int, event: StepDone) -> None:
        """Write one optimizer step."""

    def epoch(self, stage: str, step: int, event: EpochDone) -> None:
        """Write the metrics of one epoch, which ended with `step`."""

    def close(self) -> None:
        """Write what is left."""


@dataclass(frozen=True)
class Logger:
    """How a log is opened, in the run's `logs` folder, and which package it needs beside this one."""

    open: type[CsvLog] | type[TensorBoardLog]
    package: str | None = None


LOGGERS: Mapping[str, Logger] = MappingProxyType(
    {"csv": Logger(CsvLog), "tensorboard": Logger(TensorBoardLog, package="tensorboard")}
)
"""The names that a recipe's `logging` may list (`config/schema.py` repeats them)."""


def require_packages(names: Sequence[str]) -> None:
    """Raise a ConfigError where a logger's package is not installed."""
    for name in names:
        package = LOGGERS[name].package
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(f"{name} needs {package}, which is not installed: pip install 'nnicompress[logging]'")


@contextmanager
def open_loggers(names: Sequence[str], folder: Path) -> Iterator[list[Listener]]:
    """The listeners that write the logs `names` (keys of `LOGGERS`) below `folder`, the run's; closed at the end.

    Raises:
        ConfigError: a logger's package is not installed.
    """
    require_packages(names)
    with ExitStack() as stack:
        logs = [LOGGERS[name].open(folder / FOLDER) for name in names]
        for log in logs:
            stack.callback(log.close)
        yield [TrainingLog(log) for log in logs]


class TrainingLog:
    """A listener that keeps a log; it finds out whether a stage runs from its start or goes on after a kill.

    StageResumed says so. Where nobody sends it, the first step tells: a stage from its start begins with step 1.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._stage = ""
        self._begun = False
        self._resumed: int | None = None
        self._before = 0  # steps of the stage's earlier trainings
        self._last = StepDone(0, 0.0, 0.0)
        self._waiting: list[EpochDone] = []

    def __call__(self, event: Event) -> None:
        """Hear one event."""
        match event:
            case StageStarted():
                self._stage, self._begun, self._resumed, self._before = event.name, False, None, 0
            case StageResumed():
                self._resumed = event.steps
            case TrainingStarted():
                self._last = StepDone(0, 0.0, 0.0)
            case StepDone():
                self._begin(event.step - 1)
                self._last = event
                self._log.step(self._stage, self._before + event.step, event)
            case EpochDone() if not self._begun:
                # Killed between an epoch's last step and its end: which step that was, the next event tells.
                self._waiting.append(event)
            case EpochDone():
                self._log.epoch(self._stage, self._before + self._step_of(event), event)
            case TrainingFinished():
                self._begin(event.steps)
                self._before += event.steps
            case _:
                pass

    def _begin(self, done: int) -> None:
        """The stage's first step is here, after `done` steps of the training in progress."""
        if self._begun:
            return
        self._begun = True
        steps = done if self._resumed is None else self._resumed
        self._before = steps - done
        if steps:
            self._log.resume(self._stage, steps, keep_metrics=not self._waiting)
        else:
            self._log.begin(self._stage)
        for event in self._waiting:
            self._log.epoch(self._stage, steps, event)
        self._waiting.clear()

    def _step_of(self, event: EpochDone) -> int:
        last = self._last
        # On a GPU the last loss may arrive later than the epoch's end, so the step is reckoned where it can be.
        return round(event.epoch * last.step / last.epoch) if last.epoch else last.step
