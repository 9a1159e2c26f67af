"""`logs/tensorboard/STAGE/`: event files that TensorBoard reads, one of its "runs" a stage."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from nnicompress.events import EpochDone, StepDone

FLUSH_INTERVAL = 1.0
"""Seconds: what a killed process may lose of its curves."""


class TensorBoardLog:
    """Writes `loss`, `learning_rate` and `validation/NAME` over the steps of each stage.

    Steps that a resumed run does again hide the earlier ones by TensorBoard's own rule for restarts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer: Any = None
        self._stage: str | None = None
        self._flushed = time.monotonic()

    def begin(self, stage: str) -> None:
        """Forget `stage`; what other stages wrote goes when they begin."""
        self.close()
        shutil.rmtree(self._folder / stage, ignore_errors=True)

    def resume(self, stage: str, steps: int, *, keep_metrics: bool) -> None:
        """Hide what was written of `stage` after step `steps`; the same metrics once more at that step do no harm."""
        self._writer_of(stage, purge_step=steps + 1)

    def step(self, stage: str, step: int, event: StepDone) -> None:
        """Write one optimizer step."""
        writer = self._writer_of(stage)
        writer.add_scalar("loss", event.loss, step)
        writer.add_scalar("learning_rate", event.learning_rate, step)
        if time.monotonic() - self._flushed >= FLUSH_INTERVAL:
            self._flush()

    def epoch(self, stage: str, step: int, event: EpochDone) -> None:
        """Write the metrics of one epoch at its last step."""
        writer = self._writer_of(stage)
        for name, value in event.metrics.items():
            writer.add_scalar(f"validation/{name}", value, step)
        self._flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = self._stage = None

    def _writer_of(self, stage: str, purge_step: int | None = None) -> Any:
        if self._stage != stage or purge_step is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.close()
            folder = self._folder / stage
            _wait_for_a_later_name(folder)
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)
            self._stage = stage
        return self._writer

    def _flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()


def _wait_for_a_later_name(folder: Path) -> None:
    """Event files are read in the order of their names, which begin with the second they were made in."""
    seconds = [int(file.name.split(".")[3]) for file in folder.glob("events.out.tfevents.*")]
    while seconds and int(time.time()) <= max(seconds) <= time.time() + 1:
        time.sleep(0.05)
