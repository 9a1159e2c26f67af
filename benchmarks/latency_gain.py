"""ResNet-18 at 224x224, batch 32: how much of the gain in multiply-accumulates becomes latency, in onnxruntime.

Needs the extra `export`. L1 importance, the same share of every layer, widths rounded as in a recipe. Baseline and
compact model are exported the same way and run in turn, in one process and one runtime. `asked` is the arithmetic that
exact, unrounded widths would have.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

import nnicompress
from nnicompress.export.onnx import OnnxModel, export_onnx
from nnicompress.graph import count_macs
from nnicompress.measure.latency import forward_call, measure_calls
from nnicompress.models.resnet import resnet18
from nnicompress.shrink import prove, shrink


def pruned(ratio: float, x: torch.Tensor) -> tuple[nn.Module, nn.Module]:
    """The float model and its compact form, proven."""
    torch.manual_seed(0)
    model = resnet18().eval()
    baseline = resnet18().eval()
    baseline.load_state_dict(model.state_dict())
    evaluator = nnicompress.TorchEvaluator(dummy_input=x)
    result = nnicompress.Pruner(
        [{"op_types": ["Conv2d"], "sparse_ratio": ratio}], evaluator, importance="l1", allocation={"name": "uniform"}
    ).compress(model)
    assert result.groups is not None
    compact = shrink(model, result.groups, result.removal)
    prove(model, compact, result.groups, result.removal, [((x[:2],), {}), ((x[:3],), {})])
    return baseline, compact.eval()


def asked_macs(ratio: float) -> float:
    """Multiply-accumulates of ResNet-18 if every width kept exactly `1 - ratio` of its channels."""
    keep = 1 - ratio
    stem, head = 3 * 49 * 64 * 112**2, 512 * 1000
    blocks = 0.0
    for index, width in enumerate((64, 128, 256, 512)):
        area, before = (56 // 2**index) ** 2, width if index == 0 else width // 2
        blocks += area * 9 * (before * width + 3 * width * width) + (area * before * width if index else 0)
    return keep * (stem + head) + keep**2 * blocks


def main() -> None:
    """Print one line a ratio and runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x = torch.randn(options.batch, 3, 224, 224)
    inputs = ((x,), {})
    print("asked  runtime       MACs kept (asked)   MACs gain   latency gain   share   baseline    compact")
    for ratio in (0.5, 0.47):
        baseline, compact = pruned(ratio, x)
        full, left = (count_macs(model, (x[:1],)).total for model in (baseline, compact))
        with tempfile.TemporaryDirectory() as folder:
            sessions = {}
            for name, model in (("baseline", baseline), ("compact", compact)):
                path = Path(folder) / f"{name}.onnx"
                export_onnx(model, ((x[:2],), {}), path)
                sessions[name] = OnnxModel(path)
            runtimes = {"onnxruntime": sessions, "eager torch": {"baseline": baseline, "compact": compact}}
            for runtime, models in runtimes.items():
                calls = {name: forward_call(model, inputs) for name, model in models.items()}
                times = measure_calls(calls, warmup=2, repeats=options.repeats, seconds=1e9)
                slow, fast = times["baseline"].median, times["compact"].median
                print(
                    f"{ratio:4.0%}   {runtime:12}  {left / full:6.1%} ({asked_macs(ratio) / full:6.1%})   "
                    f"{full / left:9.2f}   {slow / fast:12.2f}   {slow / fast / (full / left):5.0%}   "
                    f"{slow * 1e3:7.0f} ms {fast * 1e3:7.0f} ms"
                )


if __name__ == "__main__":
    main()
