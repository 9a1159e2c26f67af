"""Fake quantizers put into models by hand, where onnxruntime wants them: what freezing and exporting start from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D

from nnicompress.evaluators.contract import ModelInput
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.models.mobilenet_v2 import mobilenet_v2
from nnicompress.models.resnet import resnet18
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.result import QuantizationResult
from nnicompress.quantization.scheme import Granularity, Scheme
from nnicompress.trace import trace

ACTIVATION = Scheme("uint8")


class Range:
    """Smallest and largest value of all that passed, zero included."""

    def __init__(self) -> None:
        self.low, self.high = torch.tensor(0.0), torch.tensor(0.0)

    def collect(self, x: Tensor) -> None:
        self.low, self.high = torch.minimum(self.low, x.min()), torch.maximum(self.high, x.max())


class _Quantized:
    def forward(self: Any, x: Tensor) -> Tensor:
        x, weight = self.quantizers["input"](x), self.quantizers["weight"](self.weight)
        if isinstance(self, nn.Conv2d):
            return self._conv_forward(x, weight, self.bias)
        if isinstance(self, Conv1D):
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), weight).view(*x.shape[:-1], self.nf)
        return F.linear(x, weight, self.bias)


class QuantizedConv2d(_Quantized, nn.Conv2d):
    pass


class QuantizedLinear(_Quantized, nn.Linear):
    pass


class QuantizedConv1D(_Quantized, Conv1D):
    pass


CLASSES: dict[type, type] = {nn.Conv2d: QuantizedConv2d, nn.Linear: QuantizedLinear, Conv1D: QuantizedConv1D}


def simulate(
    model: nn.Module, inputs: ModelInput, weight_dtype: str = "int8", activation: Scheme = ACTIVATION, block: int = 0
) -> nn.Module:
    """Quantize input and weight of every convolution and linear layer, ranges as seen on `inputs`."""
    for module in list(model.modules()):
        if type(module) in CLASSES:
            axis = 1 if type(module) is Conv1D else 0
            granularity = Granularity(1 - axis, block) if block else Granularity(axis)
            weight = FakeQuantizer(Scheme(weight_dtype, symmetric=True, granularity=granularity), module.weight.shape)
            module.quantizers = nn.ModuleDict({"input": FakeQuantizer(activation), "weight": weight})
            module.__class__ = CLASSES[type(module)]
            _set_to_weight(weight, module.weight.detach())
    calibrate(model, inputs)
    return model


def calibrate(model: nn.Module, inputs: ModelInput) -> None:
    """Set every fake quantizer of activations to what passes through it on `inputs`, and let all simulate."""
    ranges = {}
    for module in model.modules():
        if isinstance(module, FakeQuantizer) and module.scheme.granularity.kind == "tensor":
            module.watcher = ranges[module] = Range()
            module.observing = True
    args, kwargs = inputs
    with torch.no_grad():
        model.eval()
        for quantizer in ranges:
            quantizer.train()  # they observe in training mode only
        model(*args, **kwargs)
    for module in model.modules():
        if isinstance(module, FakeQuantizer):
            if module in ranges:
                module.set_parameters(*module.scheme.parameters(ranges[module].low, ranges[module].high))
            module.observing, module.watcher, module.simulating = False, None, True
    model.eval()


def _set_to_weight(quantizer: FakeQuantizer, weight: Tensor) -> None:
    axis, block = quantizer.scheme.granularity.axis, quantizer.scheme.granularity.block_size
    assert axis is not None
    if block is None:
        rows = weight.movedim(axis, 0).flatten(1)
        low, high = rows.min(1).values, rows.max(1).values
    else:
        groups = weight.movedim(axis, 0).split(block)
        low = torch.stack([group.min(0).values for group in groups]).movedim(0, axis)
        high = torch.stack([group.max(0).values for group in groups]).movedim(0, axis)
    quantizer.set_parameters(*quantizer.scheme.parameters(low, high))


def quantized(
    model: nn.Module, inputs: ModelInput, targets: list[dict[str, Any]] | None = None, **settings: Any
) -> QuantizationResult:
    """What a quantizer with these settings finds, after two steps of a training, or a calibration alone.

    Without `targets`, transposed convolutions and what else is no key of CLASSES stays in float.
    """

    def loop(model: nn.Module, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
        model.train()
        for _ in range(max_steps or 1):
            optimizers.zero_grad()
            step(inputs, model).backward()
            optimizers.step()

    def training_step(batch: ModelInput, model: nn.Module) -> Tensor:
        return tree_leaves(model(*batch[0], **batch[1]))[0].square().mean()

    evaluator = TorchEvaluator(loop, trace(torch.optim.SGD)(model.parameters(), lr=1e-3), training_step)
    present = {type(module) for module in model.modules()}
    target: dict[str, Any] = {"op_types": [kind.__name__ for kind in CLASSES if kind in present]}
    if settings.get("method") == "dorefa":
        target["target_settings"] = {"weight": {"quant_dtype": "int4"}}
    quantizer = Quantizer(targets or [target], evaluator, **settings)
    return quantizer.compress(model, **({} if settings.get("trains") is False else {"max_steps": 2}))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a connection across."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=0.1), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        return self.out(torch.cat([first, self.up(second)], dim=1))


class Residual(nn.Module):
    """A residual block whose addition is quantized `by_hand`: both inputs, and the output behind the ReLU."""

    def __init__(self, width: int = 8, by_hand: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.conv = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.left, self.right, self.sum = (FakeQuantizer(ACTIVATION) if by_hand else nn.Identity() for _ in range(3))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.sum(F.relu(self.left(x) + self.right(self.conv(x))))
        return self.head(x.mean((2, 3)))


def trained_like(model: nn.Module) -> nn.Module:
    """Batch norms with statistics and weights of both signs, as training leaves them."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                for tensor in (module.weight, module.bias, module.running_mean):
                    assert tensor is not None
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2 + (tensor is module.weight))
                assert module.running_var is not None
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model


def image(*shape: int) -> ModelInput:
    return ((torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)),), {})


def tokens(length: int = 9, batch: int = 2, seed: int = 1) -> ModelInput:
    ids = torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return (), {"input_ids": ids, "attention_mask": mask}


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def networks() -> Iterator[tuple[str, nn.Module, ModelInput]]:
    """Tiny ones of every kind, with an input for each."""
    torch.manual_seed(0)
    yield "resnet", trained_like(resnet18(10, width=8, small_images=True)), image(3, 16, 16)
    yield "mobilenet_v2", trained_like(mobilenet_v2(10, small_images=True)), image(3, 16, 16)
    yield "residual", trained_like(Residual()), image(3, 8, 8)
    yield "plain", trained_like(Residual(by_hand=False)), image(3, 8, 8)
    yield "unet", trained_like(UNet()), image(3, 16, 16)
    yield (
        "vit",
        ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **SIZES)),
        (
            (),
            {"pixel_values": image(3, 16, 16)[0][0]},
        ),
    )
    bert = BertConfig(vocab_size=50, max_position_embeddings=64, **SIZES)
    yield "bert", BertForSequenceClassification(bert), tokens()
    gpt2 = GPT2Config(
        vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=64, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    yield "gpt2", GPT2LMHeadModel(gpt2), tokens()
    llama = LlamaConfig(vocab_size=50, num_key_value_heads=2, use_cache=False, **SIZES)
    yield "llama", LlamaForCausalLM(llama), tokens()


NETWORKS = ("resnet", "mobilenet_v2", "residual", "plain", "unet", "vit", "bert", "gpt2", "llama")


def network(name: str) -> tuple[nn.Module, ModelInput]:
    """The one of this name."""
    return next((model.eval(), inputs) for found, model, inputs in networks() if found == name)


def other_inputs(inputs: ModelInput, batch: int, longer: int = 0) -> ModelInput:
    """Of another batch size, and for tokens of another length."""
    args, kwargs = inputs
    if "input_ids" in kwargs:
        return tokens(kwargs["input_ids"].shape[1] + longer, batch, seed=2)
    generator = torch.Generator().manual_seed(2)
    fresh = [torch.randn(batch, *x.shape[1:], generator=generator) for x in (*args, *kwargs.values())]
    return tuple(fresh[: len(args)]), dict(zip(kwargs, fresh[len(args) :], strict=True))
