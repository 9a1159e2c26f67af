"""One operator for a simulated quantization, so that a captured graph says where each one is."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.frozen import dequantize, quantize

SIMULATION = "nnicompress.fake_quantize.default"


class Marked(nn.Module):
    """`model`, in evaluation mode, with each call of torch's fake quantization as an operator of our own.

    torch's operator for a scale and a zero point in tensors can't be captured (2.13 has no form of it for fake
    tensors), and what stands for it there is several operators long. `model` is changed: its fake quantizers no longer
    look at their switches, which a capture can't read.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for module in list(model.modules()):
            if isinstance(module, FakeQuantizer):
                _fix(module)
        self.model = model
        self.forward = functools.wraps(model.forward)(functools.partial(_forward, self))
        self.eval()


def _forward(marked: Marked, *args: Any, **kwargs: Any) -> Any:
    with _Marking():
        return marked.model(*args, **kwargs)


@torch.library.custom_op("nnicompress::fake_quantize", mutates_args=())
def _fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None) -> Tensor:
    return dequantize(quantize(x, scale, zero_point, low, high, axis), scale, zero_point, axis)


@_fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None) -> Tensor:
    return torch.empty_like(x)


class _Marking(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.fake_quantize_per_tensor_affine:
            x, scale, zero_point, low, high = args
            return _fake_quantize(x, scale, zero_point, low, high, None)
        if func is torch.fake_quantize_per_channel_affine:
            x, scale, zero_point, axis, low, high = args
            return _fake_quantize(x, scale, zero_point, low, high, axis)
        return func(*args, **(kwargs or {}))


def _fix(quantizer: FakeQuantizer) -> None:
    switches = False, quantizer.simulating
    quantizer.__class__ = type("Fixed", (type(quantizer),), {"_switches": lambda self: switches})
