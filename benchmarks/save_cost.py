"""What saving the state of a training costs at the default interval, in per cent of an epoch of the demonstration.

The demonstration recipe's training runs with saves at the default interval, at every step, and without any, in turn in
one process. The save itself is timed inside the runs that make many; both sides are printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import nnicompress
from nnicompress.config.schema import HeadSettings
from nnicompress.pipeline.checkpoint import Checkpoint

DEFAULT: int = HeadSettings.model_fields["save_every"].default
LATER = ["prune", "shrink", "finetune", "export", "evaluate"]
TRAINING_ONLY = [*(f"~stages.{name}" for name in LATER), "~compressor"]


def train(save_every: int, epochs: int, folder: Path) -> tuple[float, int]:
    """Seconds of the training stage, and its steps."""
    overrides = [
        *TRAINING_ONLY,
        f"save_every={save_every}",
        f"stages.train.max_epochs={epochs}",
        f"run_dir={folder}/run",
    ]
    report = nnicompress.run("taylorfo_resnet", overrides, fresh=True)
    return report.stages[0].seconds, report.stages[0].facts["steps"]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    saves: list[float] = []
    original = Checkpoint.save

    def timed(self: Checkpoint, state: dict[str, object]) -> None:
        started = time.perf_counter()
        original(self, state)
        saves.append(time.perf_counter() - started)

    Checkpoint.save = timed  # type: ignore[method-assign]
    seconds: dict[int, list[float]] = {DEFAULT: [], 1: [], 0: []}
    steps = 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for every, found in seconds.items():
                spent, steps = train(every, options.epochs, Path(folder))
                found.append(spent)
    epoch = {every: statistics.median(found) / options.epochs for every, found in seconds.items()}
    a_step = (epoch[1] - epoch[0]) * options.epochs / steps
    share = a_step * steps / options.epochs / DEFAULT / epoch[0]
    print(f"an epoch without saves             {epoch[0] * 1e3:8.1f} ms ({steps // options.epochs} steps)")
    print(f"an epoch, saved every {DEFAULT:3} steps     {epoch[DEFAULT] * 1e3:8.1f} ms")
    print(f"an epoch, saved every step         {epoch[1] * 1e3:8.1f} ms")
    writing = statistics.median(saves) * 1e3
    print(f"one save                           {a_step * 1e3:8.1f} ms, of which writing {writing:.1f} ms")
    print(f"share of an epoch at the default   {100 * share:8.2f} %  (limit 2 %)")


if __name__ == "__main__":
    main()
