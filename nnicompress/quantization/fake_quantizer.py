"""A fake quantizer: simulates a scheme on one tensor of a forward, and shows it to an observer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.observers import RangeObserver
from nnicompress.quantization.ranges import Range
from nnicompress.quantization.scheme import Granularity, Scheme


class Watcher(Protocol):
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

    def __init__(
        self,
        scheme: Scheme,
        tensor_shape: torch.Size | tuple[int, ...] = (),
        *,
        scale_shape: tuple[int, ...] | None = None,
    ) -> None:
        """`tensor_shape`: of the tensors to come; sizes that the granularity does not read may be anything.

        `scale_shape` says instead what follows from it.
        """
        super().__init__()
        self.scheme = scheme
        shape = scheme.shape(tensor_shape) if scale_shape is None else scale_shape
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer(
            "zero_point", torch.full(shape, scheme.middle if scheme.symmetric else 0, dtype=torch.int32)
        )
        self.register_buffer("flags", torch.zeros(2, dtype=torch.bool))
        self.observer: RangeObserver | None = None
        """What follows a training; part of a checkpoint."""
        self.watcher: Watcher | None = None
        """What sees the values in its place during a calibration."""
        self.batch_norm: tuple[nn.Module, ...] = ()
        """Of a weight that is quantized with a batch norm folded in: that one. A tuple, so that it is no child."""
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
        # A backward pass that runs the forward again (gradient checkpointing) shows nothing new, and an evaluation
        # within a training nothing that the training may know.
        if observing and self.training and torch._C._current_graph_task_id() == -1:
            watcher = self.observer if self.watcher is None else self.watcher
            if watcher is not None:
                with torch._C.DisableTorchFunction():
                    watcher.collect(x.detach())
        if not simulating:
            return x
        # These operators are no calls of the user's forward, which a frame counts (`frames.py`).
        with torch._C.DisableTorchFunction():
            return self.simulate(x)

    def simulate(self, x: Tensor) -> Tensor:
        """`x`, quantized and dequantized."""
        scale, zero_point = self.quantization_parameters()
        scheme = self.scheme
        return fake_quantize(x, scale, zero_point, scheme.quant_min, scheme.quant_max, scheme.granularity.axis)

    def __getstate__(self) -> dict[str, Any]:
        # A copy's buffer counts its versions afresh, and may arrive at the number of what was read of the original.
        return {**self.__dict__, "_seen": (None, -1, (False, False)), "watcher": None}


def set_to_ranges(ranges: Iterable[tuple[FakeQuantizer, Range]]) -> None:
    """Scale and zero point of each quantizer by its range, all of one scheme at once."""
    groups: dict[tuple[Scheme, torch.device], list[tuple[FakeQuantizer, Range]]] = defaultdict(list)
    for quantizer, found in ranges:
        groups[quantizer.scheme, found[0].device].append((quantizer, found))
    for (scheme, _), members in groups.items():
        parameters = scheme.parameters_of_all([found for _, found in members])
        for (quantizer, _), (scale, zero_point) in zip(members, parameters, strict=True):
            quantizer.set_parameters(scale, zero_point)


BIAS_PER_TENSOR = Scheme("int32", symmetric=True, full_range=True)
BIAS = Scheme("int32", symmetric=True, full_range=True, granularity=Granularity(axis=0))


class BiasQuantizer(FakeQuantizer):
    """Rounds a bias to int32 at the scale of its layer's input times its weight's, as an integer runtime adds it."""

    def __init__(self, scale_shape: tuple[int, ...], sources: tuple[FakeQuantizer, ...] = ()) -> None:
        """`sources`: the quantizers of input and weight; without them the scale is what it was set to."""
        super().__init__(BIAS if scale_shape else BIAS_PER_TENSOR, scale_shape=scale_shape)
        self.sources = sources

    def quantization_parameters(self) -> tuple[Tensor, Tensor]:
        """Scale, of the sources where there are any, and zero point 0."""
        if not self.sources:
            return self.scale, self.zero_point
        scales = [source.quantization_parameters()[0] for source in self.sources]
        return (scales[0] * scales[1]).expand_as(self.scale), self.zero_point

    def simulate(self, x: Tensor) -> Tensor:
        """The rounded bias; its gradient passes."""
        scale, _ = self.quantization_parameters()
        wide = x.detach().float()
        rounded = torch.round(wide / scale).clamp(-(2.0**31), 2.0**31 - 1) * scale
        return x + (rounded.to(x.dtype) - x).detach() if x.requires_grad else rounded.to(x.dtype)
