"""What Hydra calls with each composed config: once, or once for each point of a sweep, in this process or another."""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnicompress.commands.arguments import Arguments
from nnicompress.commands.checking import OWN_SWEEPER, check_all, sweeper
from nnicompress.errors import NNICompressError
from nnicompress.sweep.ledger import Ledger, Point, sweep_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nnicompress.report.record import Report


class Task:
    """Runs the recipe. Launchers pickle it: whatever a point has to say goes into the sweep's ledger, on disk."""

    def __init__(self, parsed: Arguments, command_line: list[str], *, mode: str = "max") -> None:
        self.parsed, self.command_line, self.mode = parsed, command_line, mode
        self.ledger = Ledger(sweep_folder(parsed.overrides, smoke=parsed.smoke))
        self.error: Exception | None = None
        """What a single run ended with."""
        self._pid = os.getpid()

    def __call__(self, config: DictConfig) -> float | tuple[float, ...] | None:
        """Run once. A point of a sweep returns what its sweeper goes by, NaN where it failed."""
        from hydra.core.hydra_config import HydraConfig

        settings = HydraConfig.get()
        overrides = self._as_written(settings.overrides.task)
        # Lightning starts its processes of a multi-device training with sys.argv: it must be the user's own.
        with argv(self.command_line):
            if self.parsed.multirun:
                point = Point(int(settings.job.num), tuple(overrides), str(settings.runtime.output_dir))
                objective = settings.sweeper.get("objective") if sweeper(self.parsed) == OWN_SWEEPER else None
                names = [objective] if isinstance(objective, str) else list(objective or [])
                values = self._point(point, names)
                return values[0] if len(values) == 1 else values
            try:
                self._run(overrides)
            except Exception as error:
                self.error = error  # not raised here: Hydra would add its own words
        return None

    def _as_written(self, overrides: Sequence[str]) -> list[str]:
        """Without the `++` that Hydra alone needed to be told."""
        keys = {word.partition("=")[0] for word in self.command_line}
        return [t[2:] if t.startswith("++") and t.partition("=")[0] not in keys else t for t in overrides]

    def _point(self, point: Point, objective: Sequence[str]) -> tuple[float, ...]:
        """Run a point of a sweep: it neither stops the others nor is lost, whichever launcher runs it."""
        from nnicompress.sweep.settings import objective_values

        self.ledger.write(point)
        name = f"[{point.number + 1}] {point.name}"
        print(f"\n{name}" if self._here else name, flush=True)
        try:
            report = self._run(point.overrides)
            values = objective_values(report, objective) if objective else (_metric(report),)
        except Exception as error:
            self._tell(error)
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            text = first if isinstance(error, NNICompressError) else f"{type(error).__name__}: {first}"
            self.ledger.write(replace(point, ended=True, error=text))
            # Hydra's basic sweeper ends at an exception, and so do others; none takes this for a good value.
            return (math.nan,) * max(1, len(objective))
        self.ledger.write(replace(point, ended=True))
        return values

    def _run(self, overrides: Sequence[str]) -> Report:
        from nnicompress.commands.display import run_and_print
        from nnicompress.config.compose import compose
        from nnicompress.trust import allow

        parsed = self.parsed
        if parsed.multirun and sweeper(parsed) not in (None, OWN_SWEEPER):
            check_all(replace(parsed, overrides=tuple(overrides), hydra_options=()))
        # Composed once more, so that a run from here and one from Python go one way.
        config = compose(overrides, config_dir=parsed.config_dir)
        with allow(parsed.trust):
            if self._here:
                return run_and_print(config, smoke=parsed.smoke, fresh=parsed.fresh, explain=parsed.explain)
            return self._run_aside(config)

    def _run_aside(self, config: DictConfig) -> Report:
        """In a process beside others that share the terminal: no progress, and one line in the end."""
        from nnicompress.api import run_config
        from nnicompress.report import words

        report = run_config(config, smoke=self.parsed.smoke, fresh=self.parsed.fresh, explain=self.parsed.explain)
        print(f"{Path(report.run_dir).name}: {words.headline(report)}", flush=True)
        return report

    @property
    def _here(self) -> bool:
        """Whether this is the process that the user has started."""
        return os.getpid() == self._pid

    def _tell(self, error: Exception) -> None:
        if isinstance(error, NNICompressError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            traceback.print_exception(error)

    def show(self) -> None:
        """Show what there is of a sweep that broke off."""
        from nnicompress.sweep.conclusion import show_sweep

        if self.parsed.multirun:
            show_sweep(self.ledger)

    def conclude(self) -> None:
        """Raise what a single run ended with; show a sweep, and raise JobError where points of it failed."""
        from nnicompress.sweep.conclusion import conclude

        if self.error is not None:
            raise self.error
        if self.parsed.multirun:
            conclude(self.ledger)


@contextmanager
def argv(words: list[str]) -> Iterator[None]:
    """`sys.argv` is `words` within the block."""
    before = sys.argv
    sys.argv = words
    try:
        yield
    finally:
        sys.argv = before


def _metric(report: Report) -> float:
    """What a sweeper without an objective goes by: decisions are taken on the validation data."""
    value = report.final.validation if report.final.validation is not None else report.final.accuracy
    return math.nan if value is None else value
