"""Rewrites of a frozen program for a runtime with integer kernels: equal up to rounding, no longer bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nnicompress.errors import UserError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.quantization.frozen import DEQUANTIZE, QUANTIZE, FrozenModel, integer_dtype, references, run
from nnicompress.quantization.lowered_attention import simplify_mask
from nnicompress.quantization.lowered_convolution import unroll_columns
from nnicompress.quantization.program import Program, Step

CONVOLUTIONS = ("aten.conv1d.default", "aten.conv2d.default", "aten.conv2d.padding", "aten.conv3d.default")
_MOVES = frozenset(
    f"aten.{name}"
    for name in (
        *("view.default", "reshape.default", "flatten.using_ints", "transpose.int", "permute.default", "t.default"),
        *("unsqueeze.default", "squeeze.dim", "squeeze.dims", "select.int", "slice.Tensor", "expand.default"),
        *("contiguous.default", "clone.default", "unflatten.int"),
    )
)
"""Operators that do to integers what they do to the numbers that these stand for."""
_DIVISIONS = {
    "aten.chunk.default": "chunk",
    "aten.split.Tensor": "split",
    "aten.split_with_sizes.default": "split",
    "aten.unbind.int": "unbind",
}
NO_BLOCKS = "which model.onnx can't hold; use granularity: channel, or leave out the format onnx"
_INT32 = 2**31 - 1


def lower(frozen: FrozenModel, inputs: ModelInput) -> FrozenModel:
    """The same model as onnxruntime computes it in integers; images keep the width that they have in `inputs`.

    Batch norms behind a convolution go into the scales of its integer weights and into its bias; a bias becomes int32,
    in units of the input's scale times the weight's; a number that multiplies a dequantized value goes into its scale;
    values are dequantized where they are computed with, not before they are moved; an attention's mask is worked on
    before it meets the scores; a part of a dequantized tensor is taken of its integers; zero points get the type of
    their integers; a quantized embedding looks integers up; the columns of a convolution of images become channels.

    Raises:
        UserError: weights have one scale a block.
    """
    program = Program.of(frozen)
    _refuse_blocks(program)
    widths = _widths(frozen, inputs)
    for step in list(program.steps.values()):
        if step.operator == "aten.batch_norm.default":
            _fold_batch_norm(program, step)
        elif step.operator in _MOVES:
            _move_integers(program, step)
        elif step.operator == "aten.mul.Tensor":
            _scale_by_number(program, step)
        elif step.operator == "aten.softmax.int":
            simplify_mask(program, step)
        elif step.operator == "operator.getitem":
            _take_part(program, step)
    for step in list(program.steps.values()):
        if step.operator in (*CONVOLUTIONS, "aten.linear.default", "aten.addmm.default"):
            _quantize_bias(program, step)
        elif step.operator == "aten.embedding.default":
            _look_up_integers(program, step)
    for step in list(program.steps.values()):
        if step.operator == "aten.conv2d.default" and step.args[0]["value"] in widths:
            unroll_columns(program, step, widths[step.args[0]["value"]])
    _type_zero_points(program)
    return program.frozen()


def _refuse_blocks(program: Program) -> None:
    for step in program.steps.values():
        if step.operator == DEQUANTIZE and program.tensors[step.args[1]["buffer"]].dim() > 1:
            raise UserError(f"{step.module or step.name} has one scale a block, {NO_BLOCKS}")


def _widths(frozen: FrozenModel, inputs: ModelInput) -> dict[str, int]:
    """The width of every dequantized image of a forward: the last of four dimensions."""
    widths: dict[str, int] = {}

    def observe(name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.dim() == 4:
            widths[name] = value.shape[3]

    with torch.no_grad():
        run(frozen, *inputs, observe=observe)
    return widths


def _fold_batch_norm(program: Program, step: Step) -> None:
    convolution = program.made_by(step.args[0], *CONVOLUTIONS)
    if convolution is None or program.uses[convolution.name] != 1:
        return
    # A simulation with the batch norm folded in quantizes the product and divides by the factor again.
    weight, divisor = convolution.args[1], None
    division = program.made_by(weight, "aten.div.Tensor")
    if division is not None:
        weight, divisor = division.args[0], program.tensor(division.args[1])
    stored = program.integers(weight)
    gamma, beta, mean, variance = (program.tensor(argument) for argument in step.args[1:5])
    if stored is None or program.uses[stored[0].name] != 1 or mean is None or variance is None:
        return
    if division is not None and (divisor is None or program.uses[division.name] != 1):
        return
    gain = (1.0 if gamma is None else gamma.double()) / torch.sqrt(variance.double() + step.args[7])
    name = convolution.module or convolution.name
    if not _multiply_channels(program, *stored, gain if divisor is None else gain / divisor.double().flatten(), name):
        return
    before = _values(program, convolution.args[2]) if len(convolution.args) > 2 else None
    bias = (-mean.double() if before is None else before - mean.double()) * gain
    bias = bias if beta is None else bias + beta.double()
    new = program.add(f"{name}.bias_folded", bias.float())
    convolution.args = [convolution.args[0], {"value": stored[0].name}, new, *convolution.args[3:]]
    program.replace(step, convolution.name)
    program.uses[convolution.name] = program.uses[step.name]


def _multiply_channels(program: Program, step: Step, integers: Tensor, gain: Tensor, name: str) -> bool:
    """Multiply what `step` dequantizes by one number an index of dimension 0, in its scale; False: that can't be."""
    _, scale, zero_point, axis = step.args
    scale, zero_point = program.tensors[scale["buffer"]], program.tensors[zero_point["buffer"]]
    if axis not in (None, 0) or scale.dim() > 1:
        return False
    negative = gain < 0
    if bool(negative.any()) and bool(zero_point.any()):
        return False  # a scale must be positive, and these integers can't change their sign
    sign = (torch.where(negative, -1, 1) * (gain != 0)).reshape(-1, *[1] * (integers.dim() - 1))
    # -128, which learned scales of 8 bits make use of, becomes 127: one step off, as at any rounding.
    turned = (integers.to(torch.int16) * sign).clamp(max=torch.iinfo(integers.dtype).max).to(integers.dtype)
    scale = (scale.double() * gain.abs()).float()
    # A channel that is multiplied by 0 has integers 0, for which any scale serves.
    scale = torch.where(scale > 0, scale, torch.finfo(torch.float32).tiny)
    step.args = [
        program.add(f"{name}.weight_folded", turned),
        program.add(f"{name}.weight_folded_scale", scale),
        program.add(f"{name}.weight_folded_zero_point", zero_point.expand(len(scale)).clone()),
        0,
    ]
    return True


def _values(program: Program, value: Any) -> Tensor | None:
    """A stored tensor in float64, dequantized where it is integers; None for None."""
    stored = program.integers(value)
    if stored is not None:
        scale, zero_point = (program.tensors[argument["buffer"]] for argument in stored[0].args[1:3])
        return (stored[1].double() - zero_point) * scale
    tensor = program.tensor(value)
    return None if tensor is None else tensor.double()


def _move_integers(program: Program, step: Step) -> None:
    """Move integers, then dequantize; a weight is dequantized as it is stored."""
    dequantization = program.made_by(step.args[0], DEQUANTIZE)
    if dequantization is None or dequantization.args[3] is not None or program.integers(step.args[0]) is not None:
        return
    moved = Step(
        f"{step.name}_integers", step.operator, [dequantization.args[0], *step.args[1:]], step.kwargs, step.module
    )
    program.insert_before(step, moved)
    step.operator, step.kwargs = DEQUANTIZE, {}
    step.args = [{"value": moved.name}, *dequantization.args[1:]]


def _scale_by_number(program: Program, step: Step) -> None:
    """Attention multiplies queries by a number before their product, which would no longer be one of integers."""
    dequantization, number = program.made_by(step.args[0], DEQUANTIZE), step.args[1]
    if dequantization is None or dequantization.args[3] is not None or type(number) not in (int, float) or number <= 0:
        return
    scale = program.tensors[dequantization.args[1]["buffer"]]
    scaled = program.add(f"{dequantization.args[1]['buffer']}_times", (scale.double() * number).float())
    step.operator, step.kwargs = DEQUANTIZE, {}
    step.args = [dequantization.args[0], scaled, *dequantization.args[2:]]


def _take_part(program: Program, step: Step) -> None:
    """A part of a dequantized weight is a weight of its own; one of an activation is taken of its integers.

    Attention keeps its three projections in one weight, or takes queries, keys and values off one product.
    """
    division = program.made_by(step.args[0], *_DIVISIONS)
    dequantization = None if division is None else program.made_by(division.args[0], DEQUANTIZE)
    if division is None or dequantization is None:
        return
    whole, scale, zero_point, axis = dequantization.args
    if program.tensor(whole) is None:
        if axis is None:
            _take_integers(program, step, division, dequantization)
        return
    dim = division.args[2] if len(division.args) > 2 else 0
    if axis not in (None, 0) or dim != 0 or division.operator == "aten.unbind.int":
        return
    divide, size, index = getattr(torch, _DIVISIONS[division.operator]), division.args[1], step.args[1]

    def part(buffer: Mapping[str, str]) -> Mapping[str, str]:
        tensor = program.tensors[buffer["buffer"]]
        return program.add(f"{buffer['buffer']}_{index}", divide(tensor, size)[index]) if tensor.dim() else buffer

    step.operator, step.args, step.kwargs = DEQUANTIZE, [part(whole), part(scale), part(zero_point), axis], {}


def _take_integers(program: Program, step: Step, division: Step, dequantization: Step) -> None:
    divided = f"{division.name}_integers"
    if divided not in program.steps:
        args = [dequantization.args[0], *division.args[1:]]
        program.insert_before(division, Step(divided, division.operator, args, division.kwargs, division.module))
    part = Step(f"{step.name}_integers", step.operator, [{"value": divided}, step.args[1]], {}, step.module)
    program.insert_before(step, part)
    step.operator, step.args, step.kwargs = DEQUANTIZE, [{"value": part.name}, *dequantization.args[1:]], {}


def _quantize_bias(program: Program, step: Step) -> None:
    """Bias in int32, where input and weight are quantized and have one scale an output channel, or one for all."""
    product = step.operator == "aten.addmm.default"  # its weight is [in, out]
    at_bias, at_x, at_weight = (0, 1, 2) if product else (2, 0, 1)
    x, stored = program.made_by(step.args[at_x], DEQUANTIZE), program.integers(step.args[at_weight])
    if x is None or stored is None or x.args[3] is not None or stored[0].args[3] not in (None, int(product)):
        return
    bias = program.tensor(step.args[at_bias]) if len(step.args) > at_bias else None
    if bias is None or not bias.is_floating_point():
        return
    unit = program.tensors[x.args[1]["buffer"]].double() * program.tensors[stored[0].args[1]["buffer"]].double()
    integers = torch.round(bias.double() / unit)
    if bias.dim() != 1 or float(integers.abs().max()) > _INT32:
        return
    name = step.args[at_bias]["buffer"]
    dequantization = Step(
        f"{step.name}_bias",
        DEQUANTIZE,
        [
            program.add(f"{name}_integers", integers.to(torch.int32)),
            program.add(f"{name}_scale", unit.float()),
            program.add(f"{name}_zero_point", torch.zeros(unit.shape, dtype=torch.int32)),
            0 if unit.dim() else None,
        ],
        {},
        step.module,
    )
    program.insert_before(step, dequantization)
    step.args = [*step.args[:at_bias], {"value": dequantization.name}, *step.args[at_bias + 1 :]]


def _look_up_integers(program: Program, step: Step) -> None:
    """Dequantize the rows that were looked up, in place of the whole table; scales of rows are looked up with them."""
    stored = program.integers(step.args[0])
    if stored is None:
        return
    dequantization, integers = stored
    whole, scale, zero_point, axis = dequantization.args
    if axis is not None:
        return
    rows = Step(f"{step.name}_rows", step.operator, [whole, step.args[1]], {}, step.module)
    program.insert_before(step, rows)
    step.operator, step.args, step.kwargs = DEQUANTIZE, [{"value": rows.name}, scale, zero_point, None], {}


def _type_zero_points(program: Program) -> None:
    types: dict[str, torch.dtype] = {}
    for step in program.steps.values():
        if step.operator == QUANTIZE:
            types[step.name] = integer_dtype(step.args[3], step.args[4])
            dtype = types[step.name]
        elif step.operator == DEQUANTIZE:
            dtype = _integer_type(program, step.args[0], types)
        else:
            continue
        zero_point = program.tensors[step.args[2]["buffer"]]
        step.args = [*step.args]
        step.args[2] = program.add(f"{step.args[2]['buffer']}_{str(dtype)[6:]}", zero_point.to(dtype))


def _integer_type(program: Program, value: Any, types: Mapping[str, torch.dtype]) -> torch.dtype:
    stored = program.tensor(value)
    if stored is not None:
        return stored.dtype
    name = references(value, "value")[0]
    return types[name] if name in types else _integer_type(program, program.steps[name].args[0], types)
