"""Quantize and dequantize in one: the one function through which every simulation goes."""

from __future__ import annotations

import torch
from torch import Tensor

from nnicompress.quantization import kernel


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, axis: int | None = None
) -> Tensor:
    """`(clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale`, in the type of `x`.

    `scale` (float32) and `zero_point` (int32) are (), one a channel along `axis`, or of the rank of `x` with one a
    block along `axis`. The gradient passes where nothing was clamped, as it is (straight-through). Computed by torch's
    own operators, or within `kernel.chosen` by a compiled kernel with the same results.
    """
    if axis is None or (scale.dim() == 1 and (x.dim() > 1 or len(scale) == len(x))):
        return kernel.fake_quantize(x, scale, zero_point, quant_min, quant_max, axis)
    blocks = x.movedim(axis, -1)
    length, count = blocks.shape[-1], scale.shape[axis]
    size = -(-length // count)
    padded = torch.nn.functional.pad(blocks, (0, count * size - length))
    flat = kernel.fake_quantize(
        padded.reshape(-1, size),
        scale.movedim(axis, -1).reshape(-1),
        zero_point.movedim(axis, -1).reshape(-1),
        quant_min,
        quant_max,
        axis=0,
    )
    return flat.reshape(padded.shape)[..., :length].movedim(-1, axis)
