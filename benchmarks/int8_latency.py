"""Int8 over float in onnxruntime, one thread: ResNet-18 at 224x224, and an encoder of MiniLM's size on 128 tokens.

Aims: ResNet-18 at most 0.32 and the encoder at most 0.55 of the float file's latency, at most 0.27 of its size (an
encoder's embeddings are quantized, too), every convolution and linear layer in integers. Weights are random: neither
latency nor size depends on them. Rounds in turn; the ratio of the medians is what counts, and differs by processor.

    .venv/bin/python benchmarks/int8_latency.py [SECONDS]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertModel

from nnicompress.evaluators.contract import ModelInput
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.export.integer_coverage import integer_coverage
from nnicompress.export.onnx import OnnxModel, export_onnx
from nnicompress.measure.latency import forward_call, measure_calls
from nnicompress.models.resnet import resnet18
from nnicompress.pipeline.manifest import machine
from nnicompress.quantization.freeze import freeze
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.trace import trace


class Encoder(nn.Module):
    """Six layers of width 384, as all-MiniLM-L6-v2 has them; returns the last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel(
            BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
            add_pooling_layer=False,
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[batch, tokens, width]."""
        hidden: Tensor = self.bert(input_ids, attention_mask).last_hidden_state
        return hidden


def quantized(model: nn.Module, inputs: ModelInput, op_types: list[str]) -> nn.Module:
    """Calibrated on two samples, and frozen."""

    def loop(model: nn.Module, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
        for _ in range(max_steps or 1):
            optimizers.zero_grad()
            step(inputs, model).backward()
            optimizers.step()

    def step(batch: ModelInput, model: nn.Module) -> Tensor:
        return tree_leaves(model(*batch[0], **batch[1]))[0].sum()

    evaluator = TorchEvaluator(loop, trace(torch.optim.SGD)(model.parameters(), lr=0.1), step)
    result = Quantizer([{"op_types": op_types}], evaluator, trains=False, calibration_steps=1).compress(model)
    return freeze(model, inputs, result)


def compare(name: str, model: nn.Module, inputs: ModelInput, op_types: list[str], seconds: float) -> None:
    """Export both, time both, print both."""
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.onnx" for kind in ("float", "int8")}
        export_onnx(model.eval(), inputs, files["float"])
        export_onnx(quantized(model, inputs, op_types), inputs, files["int8"])
        models = {kind: OnnxModel(file, threads=1).eval() for kind, file in files.items()}
        times = {}
        for batch in (1, 8):
            samples = _samples(inputs, batch)
            calls = {kind: forward_call(model, samples) for kind, model in models.items()}
            times[batch] = measure_calls(calls, warmup=3, repeats=500, seconds=seconds)
        coverage = integer_coverage(files["int8"])
        sizes = {kind: file.stat().st_size for kind, file in files.items()}
    print(f"== {name}")
    for batch, measured in times.items():
        for kind, latency in measured.items():
            low, median, high = (1e3 * x for x in (latency.low, latency.median, latency.high))
            print(f"batch {batch}, {kind:>5}: {median:7.2f} ms ({low:.2f} to {high:.2f}, {latency.repeats} runs)")
        print(f" ratio: {measured['int8'].median / measured['float'].median:.2f} latency")
    print(f" {sizes['int8'] / 1e6:.2f} of {sizes['float'] / 1e6:.2f} MB: {sizes['int8'] / sizes['float']:.3f} size")
    print(f" {coverage.summary}")
    for operator in coverage.weighted_in_float:
        print(f" in float: {operator.name} ({operator.operator}): {operator.reason}")


def _samples(inputs: ModelInput, batch: int) -> ModelInput:
    def repeated(x: Tensor) -> Tensor:
        return x[:1].expand(batch, *x.shape[1:]).contiguous()

    return tuple(repeated(x) for x in inputs[0]), {key: repeated(x) for key, x in inputs[1].items()}


def main() -> None:
    """Both networks."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine())
    images = ((torch.randn(2, 3, 224, 224),), {})
    compare("ResNet-18, 224x224", resnet18(), images, ["Conv2d", "Linear"], seconds)
    ids = torch.randint(1000, 30000, (2, 128))
    tokens = ((ids, torch.ones_like(ids)), {})
    compare("MiniLM's size, 128 tokens", Encoder(), tokens, ["Linear", "Embedding"], seconds)


if __name__ == "__main__":
    main()
