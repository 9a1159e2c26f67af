"""Accuracy at 40 % of the channels removed, over all 1,797 images: five folds, each tested on its own fifth.

Prints each fold's baseline, Taylor and random accuracy (test role, after the same fine-tuning), their means, and
whether each run meets the bounds of `expected:` in the demonstration recipe. The three share data, seed and training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import nnicompress
from nnicompress.report.record import Report

FAST = ["~stages.export", "stages.evaluate.seconds=0.01", "stages.evaluate.repeats=3", "stages.evaluate.memory=false"]


def run(importance: str, fold: int, seed: int, ratio: float, folder: Path) -> Report:
    """The demonstration recipe with another importance; everything else is the same."""
    changes = [] if importance == "taylor" else [f"compressor.importance.name={importance}"]
    return nnicompress.run(
        "taylorfo_resnet",
        [
            f"data.fold={fold}",
            f"seed={seed}",
            f"compressor.targets.convs.sparse_ratio={ratio}",
            f"run_dir={folder}/{importance}-{fold}-{seed}",
            *FAST,
            *changes,
        ],
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    names = ("baseline", "taylor", "random")
    accuracies: dict[str, list[float]] = {name: [] for name in names}
    print("fold   baseline   taylor   random   MACs kept: taylor, random   expected: taylor, random")
    with tempfile.TemporaryDirectory() as folder:
        for fold in range(options.folds):
            reports = {
                name: run(name, fold, options.seed, options.ratio, Path(folder)) for name in ("taylor", "random")
            }
            scores = [reports["taylor"].baseline.accuracy, *(r.final.accuracy for r in reports.values())]
            for name, score in zip(names, scores, strict=True):
                assert score is not None
                accuracies[name].append(score)
            kept = [(r.final.macs or 0) / (r.baseline.macs or 1) for r in reports.values()]
            met = ["met" if r.met else "missed" for r in reports.values()]
            row = "".join(f"{100 * accuracies[name][-1]:9.2f}" for name in names)
            print(f"{fold:4} {row}   {kept[0]:17.2f}, {kept[1]:.2f}   {met[0]:>16}, {met[1]}", flush=True)
    means = {name: 100 * statistics.mean(values) for name, values in accuracies.items()}
    print("mean " + "".join(f"{means[name]:9.2f}" for name in names))
    losses = [means["baseline"] - means[name] for name in ("taylor", "random")]
    print(f"Taylor loses {losses[0]:.2f} points, random {losses[1]:.2f}")


if __name__ == "__main__":
    main()
