"""A fake quantizer: simulates a scheme on one tensor of a forward, and shows it to an observer."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.scheme import Scheme


class Observer(Protocol):
    """Sees the values that a fake quantizer is given."""

    def collect(self, x: Tensor) -> None:
        """Take note of one tensor."""


class FakeQuantizer(nn.Module):
    """Quantizes and dequantizes what passes through, once it simulates; shows it to the observer while it observes.

    Scale, zero point and both switches are buffers of a fixed shape, changed in place, so that a checkpoint holds what
    a training goes on with.
    """

    scale: Tensor
    zero_point: Tensor
    flags: Tensor

    def __init__(self, scheme: Scheme, tensor_shape: torch.Size | tuple[int, ...] = ()) -> None:
        """`tensor_shape`: of the tensors to come; sizes that the granularity does not read may be anything."""
        super().__init__()
        self.scheme = scheme
        shape = scheme.shape(tensor_shape)
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer(
            "zero_point", torch.full(shape, scheme.middle if scheme.symmetric else 0, dtype=torch.int32)
        )
        self.register_buffer("flags", torch.zeros(2, dtype=torch.bool))
        self.observer: Observer | None = None
        self._seen: tuple[Tensor | None, int, tuple[bool, bool]] = (None, -1, (False, False))

    @property
    def observing(self) -> bool:
        """Whether the observer is shown what passes."""
        return self._switches()[0]

    @observing.setter
    def observing(self, on: bool) -> None:
        self.flags[0] = on

    @property
    def simulating(self) -> bool:
        """Whether the forward quantizes."""
        return self._switches()[1]

    @simulating.setter
    def simulating(self, on: bool) -> None:
        self.flags[1] = on

    def _switches(self) -> tuple[bool, bool]:
        # Reading a buffer waits for its device; that is done only after somebody wrote it.
        tensor, version, switches = self._seen
        if tensor is not self.flags or version != self.flags._version:
            observing, simulating = self.flags.tolist()
            switches = observing, simulating
            self._seen = self.flags, self.flags._version, switches
        return switches

    def __getstate__(self) -> dict[str, Any]:
        # A copy's buffer counts its versions afresh, and may arrive at the number of what was read of the original.
        return {**self.__dict__, "_seen": (None, -1, (False, False))}

    def quantization_parameters(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32), exactly as the forward uses them."""
        return self.scale, self.zero_point

    def set_parameters(self, scale: Tensor, zero_point: Tensor) -> None:
        """Take over scale and zero point, in place."""
        with torch.no_grad():
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """`x`, quantized and dequantized where this simulates."""
        observing, simulating = self._switches()
        if observing and self.observer is not None:
            self.observer.collect(x.detach())
        if not simulating:
            return x
        scale, zero_point = self.quantization_parameters()
        scheme = self.scheme
        return fake_quantize(x, scale, zero_point, scheme.quant_min, scheme.quant_max, scheme.granularity.axis)
