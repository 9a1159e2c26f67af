"""Zero the masked elements of a tensor in one pass, at the speed of memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a floating-point element -> the integer type with as many bits."""


class Fill:
    """Sets what a mask does not keep to +0, whatever it held, and leaves every other bit as it is.

    The tensor is read as integers and combined with a pattern of all bits and no bits: unlike multiplying, `and` clears
    NaN and infinity, and unlike filling by mask or by index it is one vectorised pass over contiguous memory. The
    pattern is as small as the mask allows (one element a row where whole rows go, one row where whole columns go,
    otherwise as large as the tensor); it is made once for each device, type and memory layout.
    """

    def __init__(self, keep: Tensor) -> None:
        """`keep`: bool, of the shape of the tensors to fill."""
        self._keep = _smallest(keep)
        self._patterns: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, tensor: Tensor) -> None:
        """Zero the masked elements of `tensor`, in place (call it without gradients)."""
        integer = _INTEGERS.get(tensor.element_size()) if tensor.is_floating_point() else None
        if integer is None or type(tensor) not in (Tensor, nn.Parameter):
            tensor.masked_fill_(~self._keep.to(tensor.device), 0)
            return
        bits = tensor.detach().view(integer)
        key = (tensor.device, integer, tensor.stride())
        pattern = self._patterns.get(key)
        if pattern is None:
            pattern = self._patterns[key] = self._pattern(bits)
        bits.bitwise_and_(pattern)

    def _pattern(self, bits: Tensor) -> Tensor:
        """All bits where elements are kept, in the memory layout of `bits`, so that both are read in one sweep."""
        corner = bits[tuple(slice(size) for size in self._keep.shape)]
        return torch.zeros_like(corner).masked_fill_(self._keep.to(bits.device), -1)


def _smallest(keep: Tensor) -> Tensor:
    """The mask without repetition along its rows or its columns."""
    if keep.dim() < 2 or not keep.numel():
        return keep
    rows = keep.flatten(1)
    if torch.equal(rows.all(1), rows.any(1)):
        return keep[(slice(None), *[slice(1)] * (keep.dim() - 1))].contiguous()
    return keep[:1].contiguous() if torch.equal(keep.all(0), keep.any(0)) else keep
