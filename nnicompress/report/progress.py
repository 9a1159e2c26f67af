"""Progress while a run works: bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from nnicompress.events import (
    EpochDone,
    Event,
    Listener,
    Measured,
    Note,
    StageFinished,
    StageResumed,
    StageStarted,
    StepDone,
    TrainingFinished,
    TrainingStarted,
)
from nnicompress.report import words

# A bar is redrawn, and a plain line printed, at most so often (seconds): watching must cost nothing.
REFRESH = 0.1
LINE_INTERVAL = 5.0


@contextmanager
def progress(console: Console | None = None) -> Iterator[Listener]:
    """The listener that fits `console` (standard error where none is given): bars on a terminal, else lines."""
    console = console or Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield PlainLines(lambda line: console.print(line, markup=False, soft_wrap=True))
        return
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        refresh_per_second=10,
    )
    with bars:
        yield Bars(bars)


class Bars:
    """A bar for the training in progress and a line for each finished stage."""

    def __init__(self, bars: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._bars, self._clock = bars, clock
        self._stage = ""
        self._task: TaskID | None = None
        self._metrics = ""
        self._drawn = float("-inf")

    def __call__(self, event: Event) -> None:
        """Hear one event."""
        match event:
            case StageStarted():
                self._stage = f"{event.index}/{event.total} {event.name}"
                self._end_task()
                self._task = self._bars.add_task(self._stage, total=None, numbers="")
            case TrainingStarted():
                self._end_task()
                self._metrics = ""
                self._task = self._bars.add_task(self._stage, total=event.total_steps, numbers="")
            case StepDone() if self._task is not None and self._clock() - self._drawn >= REFRESH:
                self._drawn = self._clock()
                numbers = f"loss {event.loss:.3f}  {self._metrics}"
                self._bars.update(self._task, completed=event.step, numbers=numbers)
            case StageResumed():
                self._print(f"[dim]  {_resumed(event)}[/]")
            case EpochDone():
                self._metrics = _metrics(event.metrics)
            case TrainingFinished() if self._task is not None:
                self._bars.update(self._task, completed=event.steps)
            case StageFinished():
                self._end_task()
                self._print(f"[green]✓[/] {self._stage}  [dim]{words.seconds(event.seconds)}  {self._metrics}[/]")
                self._metrics = ""
            case Measured() if self._task is not None and self._clock() - self._drawn >= REFRESH:
                self._drawn = self._clock()
                self._bars.update(self._task, completed=event.number, total=event.total, numbers=event.what)
            case Note():
                self._print(
                    f"[yellow]! {escape(event.text)}[/]" if event.warning else f"[dim]  {escape(event.text)}[/]"
                )
            case _:
                pass

    def _end_task(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None

    def _print(self, line: str) -> None:
        self._bars.console.print(line, highlight=False)


class PlainLines:
    """One line for each stage, epoch and note; where epochs are long, one every few seconds besides."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._stage = ""
        self._total: int | None = None
        self._step, self._loss = 0, float("nan")
        self._began = self._told = clock()

    def __call__(self, event: Event) -> None:
        """Hear one event."""
        match event:
            case StageStarted():
                self._stage = event.name
                self._write(f"[{event.index}/{event.total}] {event.name}")
            case TrainingStarted():
                self._total, self._step = event.total_steps, 0
                self._began = self._told = self._clock()
            case StepDone():
                self._step, self._loss = event.step, event.loss
                if self._clock() - self._told >= LINE_INTERVAL:
                    self._tell("")
            case StageResumed():
                self._write(f"  {_resumed(event)}")
            case EpochDone():
                self._tell(f"  epoch {event.epoch}  {_metrics(event.metrics)}")
            case Measured() if self._clock() - self._told >= LINE_INTERVAL:
                self._told = self._clock()
                self._write(f"  {self._stage}  measured {event.number} of {event.total}: {event.what}")
            case StageFinished():
                self._write(f"  {event.name}: done in {words.seconds(event.seconds)}")
            case Note():
                self._write(f"  {'warning: ' if event.warning else ''}{event.text}")
            case _:
                pass

    def _tell(self, more: str) -> None:
        self._told = self._clock()
        of = f"/{self._total}" if self._total else ""
        left = ""
        if self._total and self._step:
            remaining = (self._told - self._began) / self._step * (self._total - self._step)
            left = f"  {words.seconds(remaining)} left" if remaining >= 1 else ""
        self._write(f"  {self._stage}  step {self._step}{of}  loss {self._loss:.4f}{more.rstrip()}{left}")


def _resumed(event: StageResumed) -> str:
    return f"goes on after step {event.steps}"


def _metrics(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{'metric' if name == 'default' else name} {value:.4g}" for name, value in metrics.items())
