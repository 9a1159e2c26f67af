"""One operator for a simulated quantization, so that a captured graph says where each one is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.errors import UserError
from nnicompress.quantization.fake_quantizer import BiasQuantizer, FakeQuantizer
from nnicompress.quantization.fixed import BinaryActivations
from nnicompress.quantization.frozen import dequantize, quantize
from nnicompress.quantization.learned import LearnedQuantizer

SIMULATION = "nnicompress.fake_quantize.default"
_KNOWN = (FakeQuantizer, BiasQuantizer, LearnedQuantizer)


def mark(model: nn.Module) -> int:
    """Let every fake quantizer in `model` run the operator; returns how many simulate.

    torch's own operator for a scale in a tensor can't be captured (2.13 has no form of it for fake tensors), and what
    stands for a simulation there is several operators long. Nor can a capture read a fake quantizer's switches.

    Raises:
        UserError: a fake quantizer does more than scale, zero point and rounding say.
    """
    count = 0
    for name, module in model.named_modules():
        if not isinstance(module, FakeQuantizer):
            continue
        signs = isinstance(module, BinaryActivations)
        if not signs and not any(type(module).simulate is kind.simulate for kind in _KNOWN):
            raise UserError(
                f"{name} ({type(module).__name__}) changes values before it rounds them, so its weights can't be "
                "frozen while they are trained; freeze the model with the quantizer's result"
            )
        simulating = module.simulating
        count += simulating
        forward = _same if not simulating else _signs if signs else _forward
        module.__class__ = type("Marked", (type(module),), {"forward": forward})
    return count


def _forward(quantizer: FakeQuantizer, x: Tensor) -> Tensor:
    scale, zero_point = quantizer.quantization_parameters()
    scheme = quantizer.scheme
    result: Any = _fake_quantize(x, scale, zero_point, scheme.quant_min, scheme.quant_max, scheme.granularity.axis)
    return result  # type: ignore[no-any-return]


def _signs(quantizer: FakeQuantizer, x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def _same(quantizer: FakeQuantizer, x: Tensor) -> Tensor:
    return x


@torch.library.custom_op("nnicompress::fake_quantize", mutates_args=())
def _fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None) -> Tensor:
    return dequantize(quantize(x, scale, zero_point, low, high, axis), scale, zero_point, axis)


@_fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None) -> Tensor:
    return torch.empty_like(x)
