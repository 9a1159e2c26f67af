"""Which integers stand for a tensor's values, and how many scales it has, as plain data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_DTYPE = re.compile(r"u?int([2-8])|int32")


@dataclass(frozen=True)
class Granularity:
    """How much of a tensor shares a scale: all of it, one index along `axis`, or `block_size` of them along `axis`."""

    axis: int | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        if self.block_size is not None and (self.axis is None or self.block_size < 1):
            raise ValueError(f"a block size of {self.block_size} needs an axis and at least 1 element")

    @property
    def kind(self) -> str:
        """`tensor`, `channel` or `block`."""
        return "tensor" if self.axis is None else "channel" if self.block_size is None else "block"


PER_TENSOR = Granularity()


@dataclass(frozen=True)
class Scheme:
    """q = clamp(round(x / scale) + zero_point, quant_min, quant_max), which stands for (q - zero_point) * scale.

    A symmetric scheme has its zero point in the middle (0 for `int8`, 128 for `uint8`) and, unless `full_range`, as
    many values below it as above: -127 to 127.
    """

    dtype: str
    """`int2` to `int8`, `uint2` to `uint8`; `int32` for biases."""
    symmetric: bool = False
    granularity: Granularity = field(default=PER_TENSOR)
    full_range: bool = False
    """Whether a symmetric scheme has the lowest integer too."""

    def __post_init__(self) -> None:
        if _DTYPE.fullmatch(self.dtype) is None:
            raise ValueError(f"no integer type {self.dtype!r}; there are int2 to int8 and uint2 to uint8")

    @property
    def signed(self) -> bool:
        """Whether the integers are."""
        return not self.dtype.startswith("u")

    @property
    def bits(self) -> int:
        """The width of an integer."""
        return int(self.dtype.partition("int")[2])

    @property
    def quant_min(self) -> int:
        """The smallest integer in use."""
        lowest = -(2 ** (self.bits - 1)) if self.signed else 0
        return lowest + (self.symmetric and not self.full_range)

    @property
    def quant_max(self) -> int:
        """The largest integer in use."""
        return int(2 ** (self.bits - self.signed)) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric scheme."""
        return 0 if self.signed else 2 ** (self.bits - 1)

    def shape(self, tensor_shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
        """The shape of scale and zero point: () per tensor, (channels,) per channel.

        Per block it is the tensor's own, with one number a block along the axis; the last block may be shorter.
        """
        axis, block = self.granularity.axis, self.granularity.block_size
        if axis is None:
            return ()
        if not -len(tensor_shape) <= axis < len(tensor_shape):
            raise ValueError(f"a tensor of shape {tuple(tensor_shape)} has no dimension {axis}")
        if block is None:
            return (tensor_shape[axis],)
        shape = list(tensor_shape)
        shape[axis] = -(-shape[axis] // block)
        return tuple(shape)

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32) for values from `low` to `high`; zero is always exact.

        Where all values are zero any scale serves, and they get the largest of the others (a bias in units of this
        scale keeps its precision), or 1.
        """
        ((scale, zero_point),) = self.parameters_of_all([(low, high)])
        return scale, zero_point

    def parameters_of_all(self, ranges: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """`parameters` of each range of many tensors, computed as one vector."""
        shapes = [low.shape for low, _ in ranges]
        sizes = [low.numel() for low, _ in ranges]
        low = torch.cat([low.reshape(-1) for low, _ in ranges]).float().clamp(max=0)
        high = torch.cat([high.reshape(-1) for _, high in ranges]).float().clamp(min=0)
        if self.symmetric:
            scale = torch.maximum(-low, high) / (self.quant_max - self.middle)
        else:
            scale = (high - low) / (self.quant_max - self.quant_min)
        widest = scale
        if max(sizes) > 1:
            widest = torch.cat([part.max().expand(len(part)) for part in torch.split(scale, sizes)])
        scale = torch.where(scale > 0, scale, torch.where(widest > 0, widest, 1.0))
        scale = scale.clamp(min=torch.finfo(torch.float32).eps)
        if self.symmetric:
            zero_point = torch.full_like(scale, self.middle, dtype=torch.int32)
        else:
            zero_point = (self.quant_min - torch.round(low / scale)).clamp(self.quant_min, self.quant_max)
        parts = zip(shapes, torch.split(scale, sizes), torch.split(zero_point.to(torch.int32), sizes), strict=True)
        return [(own_scale.view(shape), own_zero.view(shape)) for shape, own_scale, own_zero in parts]
