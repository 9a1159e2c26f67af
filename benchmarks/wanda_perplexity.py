"""Perplexity of a small Llama with half of its weights removed: random, magnitude, Wanda at once and block by block.

All runs of a seed begin with the same trained model, that of `recipes/wanda_llama_text.yaml`; nothing is trained after
the removal. Half of the weights go within each output, within each layer (magnitude alone), and as two of every four.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import nnicompress

FAST = ["stages.export.formats=[]", "stages.evaluate.seconds=0.01", "stages.evaluate.repeats=3"]
FAST += ["stages.evaluate.memory=false", "~expected"]
TWO_OF_FOUR = ["compressor.granularity='2:4'", "compressor.allocation.within=tensor"]
TWO_OF_FOUR += ["compressor.targets.weights.sparse_ratio=null"]
AT_ONCE = ["compressor.importance.blocks=null"]
LEVEL, RANDOM = ["compressor.importance.name=level"], ["compressor.importance.name=random"]
RUNS = {
    "random": RANDOM,
    "magnitude": LEVEL,
    "magnitude, of the layer": [*LEVEL, "compressor.allocation.within=tensor"],
    "wanda at once": AT_ONCE,
    "wanda by block": [],
    "random 2:4": [*RANDOM, *TWO_OF_FOUR],
    "magnitude 2:4": [*LEVEL, *TWO_OF_FOUR],
    "wanda at once 2:4": [*AT_ONCE, *TWO_OF_FOUR],
    "wanda by block 2:4": TWO_OF_FOUR,
}


def main() -> None:
    """Print a row for each way, a column for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    rows: dict[str, list[float]] = {"dense": [], **{name: [] for name in RUNS}}
    for seed in options.seeds:
        # One folder for all runs of a seed: the training is reused.
        with tempfile.TemporaryDirectory() as folder:
            for name, changes in RUNS.items():
                report = nnicompress.run("wanda_llama_text", [f"seed={seed}", f"run_dir={folder}/run", *FAST, *changes])
                assert report.baseline.accuracy is not None and report.final.accuracy is not None
                if name == next(iter(RUNS)):
                    rows["dense"].append(report.baseline.accuracy)
                rows[name].append(report.final.accuracy)
        print(f"seed {seed}: " + ", ".join(f"{name} {found[-1]:.2f}" for name, found in rows.items()), flush=True)
    for name, found in rows.items():
        print(f"{name:24} {statistics.mean(found):8.2f}   " + "".join(f"{value:8.2f}" for value in found))


if __name__ == "__main__":
    main()
