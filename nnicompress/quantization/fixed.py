"""Fake quantizers of fixed ranges: DoReFa (Zhou et al. 2016) and binary networks (Courbariaux et al. 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.scheme import Scheme


class DoReFaWeights(FakeQuantizer):
    """2 * quantize_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1, with k bits (equation 9).

    Its values are odd multiples of 1/(2^k - 1), so they are integers of k + 1 bits at that scale.
    """

    def __init__(self, bits: int) -> None:
        """`bits`: 2 to 7."""
        super().__init__(Scheme(f"int{bits + 1}", symmetric=True))
        self.levels = 2**bits - 1
        self.scale.fill_(1.0 / self.levels)

    def simulate(self, x: Tensor) -> Tensor:
        """The weights as the forward sees them; the gradient passes the rounding and follows tanh."""
        squashed = torch.tanh(x.float())
        smooth = squashed / squashed.detach().abs().max().clamp(min=1e-12)
        exact: Tensor = _OddIntegers.apply(smooth, self.scale, self.levels)  # type: ignore[no-untyped-call]
        return exact.to(x.dtype)


class DoReFaActivations(FakeQuantizer):
    """quantize_k(clip(x, 0, 1)), with the k bits of `scheme` (equation 11)."""

    def __init__(self, bits: int) -> None:
        """`bits`: 2 to 8."""
        super().__init__(Scheme(f"uint{bits}"))
        self.scale.fill_(1.0 / (2**bits - 1))


class BinaryWeights(FakeQuantizer):
    """sign(w), with sign(0) = 1; the gradient passes where |w| <= 1 (equations 1 and 4)."""

    def __init__(self) -> None:
        """Takes nothing: its values are -1 and 1, integers of 2 bits at scale 1."""
        super().__init__(Scheme("int2", symmetric=True))

    def simulate(self, x: Tensor) -> Tensor:
        """The signs."""
        signs: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]
        return signs


class BinaryActivations(BinaryWeights):
    """sign(x) of activations. No affine integers stand for it: round(x) has a zero between -1 and 1."""


class GradientQuantizer:
    """Leaves a forward's tensor as it is and quantizes its gradient to k bits (DoReFa, equation 12).

    2 max|g| * (quantize_k(g / (2 max|g|) + 1/2 + noise) - 1/2), where max is over one sample and the noise is uniform,
    half a step either side. It is drawn from generators of its own, which begin anew at each step: a Trainer sets the
    global one, and a resumed training draws the same.
    """

    def __init__(self, bits: int, seed: int = 0) -> None:
        """`bits` of the gradient; processes that train together take different seeds."""
        self.levels, self._seed = 2**bits - 1, seed
        self.begin(0)

    def begin(self, step: int) -> None:
        """The backward passes of optimizer step `step` begin."""
        self._step = step
        self._generators: dict[torch.device, torch.Generator] = {}

    def noise(self, like: Tensor) -> Tensor:
        """Uniform in [-1/2, 1/2], of this shape and on this device."""
        generator = self._generators.get(like.device)
        if generator is None:
            generator = torch.Generator(like.device).manual_seed((self._seed << 32) + self._step)
            self._generators[like.device] = generator
        return torch.rand(like.shape, generator=generator, device=like.device) - 0.5

    def __call__(self, x: Tensor) -> Tensor:
        """`x`."""
        with torch._C.DisableTorchFunction():
            same: Tensor = _QuantizedGradient.apply(x, self)  # type: ignore[no-untyped-call]
        return same


def quantize_gradient(gradient: Tensor, levels: int, noise: Tensor) -> Tensor:
    """Equation 12; `noise` is uniform in [-1/2, 1/2], of the gradient's shape."""
    dims = tuple(range(1, gradient.dim())) or (0,)
    reach = 2 * gradient.abs().amax(dim=dims, keepdim=True).clamp(min=1e-38)
    unit = (gradient / reach + 0.5 + noise / levels).clamp(0, 1)
    return reach * (torch.round(unit * levels) / levels - 0.5)


class _OddIntegers(Function):
    """From [-1, 1] to the nearest of `levels` + 1 equal levels: odd integers times the scale, as a runtime has them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, levels: int) -> Tensor:
        return (2 * torch.round((x / 2 + 0.5) * levels) - levels) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None, None


class _Sign(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * (x.abs() <= 1)


class _QuantizedGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantizer: GradientQuantizer) -> Tensor:
        ctx.quantizer = quantizer
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        wide = gradient.float()
        quantized = quantize_gradient(wide, ctx.quantizer.levels, ctx.quantizer.noise(wide))
        return quantized.to(gradient.dtype), None
