"""A convolution of images as one over columns: its kernel's width becomes channels, so that integer kernels suit it.

onnxruntime's integer convolution reads four channels at a time, one position of the kernel after the other. An image
has three: it is unrolled pixel by pixel first, at four times the cost of the products (ResNet's 7x7 stem). Here one
dimension is unrolled by a few copies of whole rows, and the products are the same integers in another order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from nnicompress.quantization.frozen import DEQUANTIZE
from nnicompress.quantization.program import Program, Step

_CHANNELS = 4
"""What an integer kernel reads at once; fewer are unrolled by the runtime."""
_SMALLEST_WIDTH = 64
"""Pixels; on smaller images the moves cost what the products save."""


def unroll_columns(program: Program, step: Step, width: int) -> None:
    """Make a convolution of few channels, [N, C, H, W], one of kernel [height, 1] over C x (kernel width) channels.

    With stride s, columns are dealt out to s phases first; then ceil(kernel width / s) shifts of them stand beside each
    other as channels. Anything else than a quantized image under a quantized kernel is left as it is.

    Args:
        program: changed in place.
        step: an `aten.conv2d.default`.
        width: W, which the unrolled convolution is fixed to.
    """
    x, stored = program.made_by(step.args[0], DEQUANTIZE), program.integers(step.args[1])
    stride, padding, dilation = (_pair(step.args, at, default) for at, default in ((3, 1), (4, 0), (5, 1)))
    groups = step.args[6] if len(step.args) > 6 else 1
    if x is None or stored is None or x.args[3] is not None or (groups, *dilation) != (1, 1, 1):
        return
    dequantization, kernel = stored
    channels, columns = kernel.shape[1], kernel.shape[3]
    if channels >= _CHANNELS or columns < 3 or width < _SMALLEST_WIDTH or dequantization.args[3] not in (None, 0):
        return
    phases = stride[1]
    shifts = -(-columns // phases)
    wide = (width + 2 * padding[1] - columns) // phases + 1
    behind = phases * (wide + shifts - 1) - width - padding[1]
    surplus = -channels * phases * shifts % _CHANNELS
    zero = int(program.tensors[x.args[2]["buffer"]])

    def new(suffix: str, operator: str, *args: Any) -> dict[str, str]:
        added = Step(f"{step.name}_{suffix}", operator, list(args), {}, step.module)
        program.insert_before(step, added)
        return {"value": added.name}

    image = new("padded", "aten.constant_pad_nd.default", x.args[0], [padding[1], behind], zero)
    dealt = new("dealt", "aten.unflatten.int", image, 3, [-1, phases])
    turned = new("phases", "aten.permute.default", dealt, [0, 1, 4, 2, 3])
    planes = new("planes", "aten.flatten.using_ints", turned, 1, 2)
    parts = [new(f"shift_{n}", "aten.slice.Tensor", planes, 3, n, n + wide) for n in range(shifts)]
    unrolled = new("unrolled", "aten.cat.default", parts, 1)
    if surplus:
        unrolled = new("filled", "aten.constant_pad_nd.default", unrolled, [0, 0, 0, 0, 0, surplus], zero)
    image = new("image", DEQUANTIZE, unrolled, *x.args[1:])
    whole = program.add(f"{dequantization.args[0]['buffer']}_unrolled", _unrolled(kernel, phases, shifts, surplus))
    weight = new("weight", DEQUANTIZE, whole, *dequantization.args[1:])
    bias = step.args[2] if len(step.args) > 2 else None
    step.args = [image, weight, bias, [stride[0], 1], [padding[0], 0], [1, 1], 1]


def _unrolled(kernel: Tensor, phases: int, shifts: int, surplus: int) -> Tensor:
    """[out, C, rows, columns] -> [out, shifts x C x phases + surplus, rows, 1]; what is added multiplies by 0."""
    out, channels, rows, columns = kernel.shape
    whole = pad(kernel, (0, shifts * phases - columns)).reshape(out, channels, rows, shifts, phases)
    dealt = whole.permute(0, 3, 1, 4, 2).reshape(out, shifts * channels * phases, rows, 1)
    return pad(dealt, (0, 0, 0, 0, 0, surplus)) if surplus else dealt


def _pair(args: list[Any], at: int, default: int) -> tuple[int, int]:
    given = args[at] if len(args) > at else default
    values = given if isinstance(given, (list, tuple)) else [given]
    return int(values[0]), int(values[-1])
