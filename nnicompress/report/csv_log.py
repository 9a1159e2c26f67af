"""`logs/metrics.csv`: one row an optimizer step and one an epoch, in the order of the run."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from nnicompress.events import EpochDone, StepDone

FILE = "metrics.csv"
COLUMNS = ("stage", "step", "epoch", "loss", "learning_rate")
"""Behind these, `validation_NAME` for each metric NAME; a row of metrics has no loss."""

Row = dict[str, str]


class CsvLog:
    """Appends to `folder/metrics.csv`; each row is on disk when the next event arrives."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        self._columns: tuple[str, ...] = COLUMNS
        self._file: IO[str] | None = None
        if self._path.exists():
            self._rewrite(lambda row: True)  # a killed run may have left half a row
        else:
            self._open("w")

    def begin(self, stage: str) -> None:
        """Forget `stage` and all that was written after it."""
        self._rewrite(_Before(stage))

    def resume(self, stage: str, steps: int, *, keep_metrics: bool) -> None:
        """Forget what was written of `stage` after step `steps`; without `keep_metrics` that step's metrics, too."""
        before = _Before(stage)

        def kept(row: Row) -> bool:
            last = steps if keep_metrics or row["loss"] else steps - 1
            return before(row) or (row["stage"] == stage and int(row["step"]) <= last)

        self._rewrite(kept)

    def step(self, stage: str, step: int, event: StepDone) -> None:
        """Write one optimizer step."""
        epoch = "" if event.epoch is None else event.epoch
        self._write([stage, step, epoch, event.loss, event.learning_rate])

    def epoch(self, stage: str, step: int, event: EpochDone) -> None:
        """Write the metrics of one epoch; without any there is nothing to write."""
        if not event.metrics:
            return
        metrics = {f"validation_{name}": value for name, value in event.metrics.items()}
        new = [name for name in metrics if name not in self._columns]
        if new:
            self._rewrite(lambda row: True, new)
        values = [metrics.get(name, "") for name in self._columns[len(COLUMNS) :]]
        self._write([stage, step, event.epoch, "", "", *values])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, mode: str) -> None:
        self._file = self._path.open(mode, encoding="utf-8", newline="", buffering=1)
        if mode == "w":
            self._write(self._columns)

    def _write(self, values: Sequence[Any]) -> None:
        assert self._file is not None, "the log is closed"
        csv.writer(self._file, lineterminator="\n").writerow([*values, *[""] * (len(self._columns) - len(values))])

    def _rows(self) -> list[Row]:
        """Every whole row of the file."""
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(whole.splitlines())
        if reader.fieldnames is not None and tuple(reader.fieldnames[: len(COLUMNS)]) == COLUMNS:
            self._columns = tuple(reader.fieldnames)
            return list(reader)
        return []

    def _rewrite(self, kept: Callable[[Row], bool], new_columns: Sequence[str] = ()) -> None:
        """Leave out rows, add columns; a reader sees the old file or the new one."""
        self.close()
        rows = [row for row in self._rows() if kept(row)]
        self._columns = (*self._columns, *new_columns)
        temporary = self._path.with_name(f".{FILE}.partial")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self._path)
        self._open("a")


class _Before:
    """Whether a row stands before the first one of a stage; asked in the file's order."""

    def __init__(self, stage: str) -> None:
        self._stage, self._met = stage, False

    def __call__(self, row: Row) -> bool:
        self._met |= row["stage"] == self._stage
        return not self._met
