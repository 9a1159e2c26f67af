"""Fake quantizers whose scale, and zero point, are trained with the weights: LSQ (Esser et al. 2020) and LSQ+."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.ranges import grouped
from nnicompress.quantization.scheme import Scheme


class LearnedQuantizer(FakeQuantizer):
    """Its scale is a parameter, and so is its zero point where `learn_zero_point` (LSQ+), rounded where it is used.

    The gradients are those of LSQ (equation 3) and LSQ+ (equations 4 and 5), times 1 / sqrt(values * quant_max), where
    `values` are those that share a scale, of one sample.
    """

    def __init__(
        self,
        scheme: Scheme,
        tensor_shape: Sequence[int] = (),
        *,
        learn_zero_point: bool = False,
        batched: bool = True,
    ) -> None:
        """`batched`: the first dimension of the tensors is the batch, which the gradient's scale does not count."""
        if scheme.granularity.kind == "block":
            raise ValueError("a learned scale is one a tensor or one a channel, not one a block")
        super().__init__(scheme, tuple(tensor_shape))
        start, zero_point = self.scale, self.zero_point
        del self.scale
        self.scale = nn.Parameter(start)
        self.learns_zero_point, self.batched = learn_zero_point, batched
        if learn_zero_point:
            del self.zero_point
            self.zero_point = nn.Parameter(zero_point.float())

    def learned(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return dict(self.named_parameters(recurse=False))

    def quantization_parameters(self) -> tuple[Tensor, Tensor]:
        """Scale and rounded zero point, exactly as the forward uses them."""
        return _positive(self.scale.detach()), self._zero_point()

    def forward(self, x: Tensor) -> Tensor:
        """`x`, quantized and dequantized where this simulates."""
        found = super().forward(x)
        if not self.simulating and self.training and torch.is_grad_enabled():
            # DistributedDataParallel waits for a gradient of every parameter.
            with torch._C.DisableTorchFunction():
                found = _Unused.apply(found, *self.learned().values())  # type: ignore[no-untyped-call]
        return found

    def simulate(self, x: Tensor) -> Tensor:
        """`x`, quantized and dequantized, with gradients for scale and zero point."""
        values = x.numel() // max(1, self.scale.numel())
        if self.batched and x.dim() > 1:
            values //= max(1, len(x))
        positive = self.scheme.quant_max if not self.scheme.symmetric else self.scheme.quant_max - self.scheme.middle
        factor = 1.0 / math.sqrt(max(1, values) * positive)
        learned: Tensor = _Learned.apply(  # type: ignore[no-untyped-call]
            x, _positive(self.scale), self.zero_point if self.learns_zero_point else None, self._zero_point(),
            self.scheme, factor,
        )  # fmt: skip
        return learned

    def _zero_point(self) -> Tensor:
        if not self.learns_zero_point:
            return self.zero_point
        rounded = torch.round(self.zero_point.detach())
        return rounded.clamp(self.scheme.quant_min, self.scheme.quant_max).to(torch.int32)


def _positive(scale: Tensor) -> Tensor:
    """A step of the optimizer may carry a scale past zero."""
    positive: Tensor = scale.abs().clamp(min=torch.finfo(torch.float32).eps)
    return positive


class _Unused(Function):
    """The first argument; the others get gradients of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (gradients[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors))


class _Learned(Function):
    """Forward as any fake quantization; `zero_point` (float) only receives a gradient, `rounded` (int32) is used."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, rounded: Tensor, scheme: Scheme, factor: float
    ) -> Tensor:
        ctx.save_for_backward(x, scale, rounded)
        ctx.scheme, ctx.factor, ctx.with_zero_point = scheme, factor, zero_point is not None
        return fake_quantize(x, scale, rounded, scheme.quant_min, scheme.quant_max, scheme.granularity.axis)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        x, scale, rounded = ctx.saved_tensors
        scheme: Scheme = ctx.scheme
        shape = [1] * x.dim()
        if scheme.granularity.axis is not None:
            shape[scheme.granularity.axis] = -1
        steps = x.float() * (1.0 / scale).reshape(shape)  # as torch's operator divides
        zero = rounded.reshape(shape).float()
        integers = torch.round(steps) + zero
        inside = (integers >= scheme.quant_min) & (integers <= scheme.quant_max)
        clamped = integers.clamp(scheme.quant_min, scheme.quant_max)
        wide = gradient.float()
        of_scale = wide * torch.where(inside, clamped - zero - steps, clamped - zero)
        of_zero = None
        if ctx.with_zero_point:
            outside = torch.where(inside, 0.0, -wide * scale.reshape(shape))
            of_zero = grouped(outside, scheme)[0].sum(dim=1).reshape(scale.shape) * ctx.factor
        summed = grouped(of_scale, scheme)[0].sum(dim=1).reshape(scale.shape) * ctx.factor
        return gradient * inside, summed, of_zero, None, None, None


def lsq_scale(mean_absolute: Tensor, positive: int) -> Tensor:
    """LSQ's first scale: 2 * mean|x| / sqrt(positive), where `positive` is the number of steps above zero."""
    return _positive(2.0 * mean_absolute.float() / math.sqrt(positive))


def lsq_plus_weight_scale(mean: Tensor, deviation: Tensor, bits: int) -> Tensor:
    """LSQ+'s first scale of weights: max(|mean - 3 deviations|, |mean + 3 deviations|) / 2^(bits - 1)."""
    reach = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs())
    return _positive((reach / 2 ** (bits - 1)).float())
