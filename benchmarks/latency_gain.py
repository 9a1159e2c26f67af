"""How much of the gain in multiply-accumulates becomes latency: ResNet-18, ViT-B/16 and BERT-base at half their widths.

Needs the extra `export`. L1 importance, the same share of every width (channels of convolutions; heads, feed-forward
and hidden widths of transformers), rounded as in a recipe; a width of exactly half quarters most of the arithmetic.
Baseline and compact model are exported the same way and run in turn, in one process, one runtime and one thread; what
counts is processor time, which other people's work on the machine disturbs less. onnxruntime is the claim (aim: 85 % of
the gain), eager torch is for information. `--keep 0.53` shows what rounding does where half is not asked for.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from networks import NETWORKS, batch, build
from torch import nn

import nnicompress
from nnicompress.export.onnx import OnnxModel, export_onnx
from nnicompress.graph import count_macs
from nnicompress.measure.latency import forward_call, measure_calls
from nnicompress.shrink import shrink

BATCH = {"resnet18": 8, "vit_b": 1, "bert_base": 1}


def compact_of(name: str, ratio: float) -> nn.Module:
    """The network without this share of each width."""
    model = build(name)
    targets = [{"op_types": ["Conv2d"], "sparse_ratio": ratio}]
    if name != "resnet18":
        kinds = ("heads", "ffn", "hidden")
        targets = [{"op_types": ["Linear"], "sparse_ratio": ratio, "granularity": kind} for kind in kinds]
    evaluator = nnicompress.TorchEvaluator(dummy_input=batch(name, 2))
    pruner = nnicompress.Pruner(targets, evaluator, importance="l1", allocation={"name": "uniform"})
    result = pruner.compress(model)
    assert result.groups is not None
    return shrink(model, result.groups, result.removal).eval()


def main() -> None:
    """Print one line a network and runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(BATCH), choices=[n for n in NETWORKS if n in BATCH])
    parser.add_argument("--keep", type=float, default=0.5, help="share of each width")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("network     runtime       MACs kept   MACs gain   latency gain   share   baseline    compact")
    for name in options.networks:
        x = batch(name, BATCH[name])
        models = {"baseline": build(name), "compact": compact_of(name, 1 - options.keep)}
        full, left = (count_macs(model, (x[:1],)).total for model in models.values())
        with tempfile.TemporaryDirectory() as folder:
            sessions: dict[str, nn.Module] = {}
            for side, model in models.items():
                export_onnx(model, ((batch(name, 2),), {}), Path(folder) / f"{side}.onnx")
                sessions[side] = OnnxModel(Path(folder) / f"{side}.onnx", threads=1)
            for runtime, sides in (("onnxruntime", sessions), ("eager torch", models)):
                calls = {side: forward_call(model, ((x,), {})) for side, model in sides.items()}
                times = measure_calls(calls, warmup=2, repeats=options.repeats, seconds=1e9, clock=time.process_time)
                slow, fast = times["baseline"].median, times["compact"].median
                print(
                    f"{name:11} {runtime:12}  {left / full:8.1%}   {full / left:9.2f}   {slow / fast:12.2f}   "
                    f"{slow / fast / (full / left):5.0%}   {slow * 1e3:7.0f} ms {fast * 1e3:7.0f} ms",
                    flush=True,
                )


if __name__ == "__main__":
    main()
