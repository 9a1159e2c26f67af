"""5-fold accuracy over all 1,797 digits: float, QAT of 8 bits, LSQ of 4 and of 2, and DoReFa of 2 beside it.

Every image is in the test data of exactly one fold. All quantizers of a fold begin with the same trained float model.
Deployed is the file that onnxruntime runs in integers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import nnicompress
from nnicompress.report.record import Report

FAST = ["stages.evaluate.seconds=0.01", "stages.evaluate.repeats=3", "stages.evaluate.memory=false"]
# What is printed is the gap, however large.
FAST += ["stages.evaluate.max_deployed_gap=null"]
# Both of 2 bits train as long and as fast, and quantize what DoReFa's paper does: weights, and inputs of all layers
# but the first and the last.
TWO_BITS = [
    "+compressor.functions=[]",
    "+compressor.targets.all.target_names=[weight,_input_]",
    "+compressor.targets.ends.target_names=[weight]",
    "compressor.targets.all.target_settings.weight.quant_dtype=int2",
    "compressor.targets.all.target_settings._input_.quant_dtype=uint2",
    "stages.quantize.max_epochs=12",
    "stages.quantize.optimizer.lr=0.02",
    "stages.export.formats=[]",
]
DOREFA = [
    "compressor=dorefa",
    "compressor.gradient_bits=null",
    "compressor.targets.all.quant_dtype=null",
    # Its weights have at most 7 bits.
    "+compressor.targets.ends.target_settings={weight: {quant_dtype: int7}}",
]
RUNS = {
    "qat w8a8": ("qat_resnet", []),
    "lsq w4a4": ("lsq_w4a4_resnet", []),
    "lsq w2a2": ("lsq_w4a4_resnet", TWO_BITS),
    "dorefa w2a2": ("lsq_w4a4_resnet", [*TWO_BITS, *DOREFA]),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    columns: dict[str, list[float]] = {}
    for fold in range(options.folds):
        row: dict[str, float] = {}
        # One folder for all runs of a fold: the training of the float model is reused.
        with tempfile.TemporaryDirectory() as folder:
            common = [f"data.fold={fold}", f"seed={options.seed}", f"run_dir={folder}/run", *FAST]
            for name, (recipe, changes) in RUNS.items():
                row |= accuracies(name, nnicompress.run(recipe, [*common, *changes]))
        if not columns:
            print("fold  " + "  ".join(row))
        for name, accuracy in row.items():
            columns.setdefault(name, []).append(100 * accuracy)
        print_row(str(fold), {name: values[-1] for name, values in columns.items()})
    means = {name: statistics.mean(values) for name, values in columns.items()}
    print_row("mean", means)
    for name in RUNS:
        lost = f"{name} loses {means['float'] - means[name]:.2f} points of float"
        deployed = means.get(f"{name} deployed")
        print(lost + ("" if deployed is None else f"; the file is {abs(deployed - means[name]):.2f} away"))


def accuracies(name: str, report: Report) -> dict[str, float]:
    """Accuracy of the float and of the fake-quantized model, and of the file where there is one."""
    found = {"float": report.baseline.accuracy, name: report.final.accuracy}
    if report.artifacts:
        found[f"{name} deployed"] = report.artifacts[0].accuracy
    return {key: accuracy for key, accuracy in found.items() if accuracy is not None}


def print_row(head: str, values: dict[str, float]) -> None:
    """One line of the table, each number under its column's name."""
    print(f"{head:4}  " + "  ".join(f"{value:{len(name)}.2f}" for name, value in values.items()), flush=True)


if __name__ == "__main__":
    main()
