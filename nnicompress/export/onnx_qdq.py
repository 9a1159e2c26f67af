"""A frozen model as ONNX with QuantizeLinear and DequantizeLinear where onnxruntime fuses them into integer kernels."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from nnicompress.errors import JobError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export.float_layers import keep_in_float
from nnicompress.export.program import capture_program
from nnicompress.exporters import forget_code, quiet, reason
from nnicompress.quantization.frozen import DEQUANTIZE, QUANTIZE, FrozenModel, dequantize, integer_dtype, quantize, run
from nnicompress.quantization.lowering import lower

QUANTIZED_VALUES = "nnicompress.quantized_values"
"""Metadata of the file: JSON, the names of its quantized activations -> the frozen model's steps."""


def translate(frozen: FrozenModel, inputs: ModelInput) -> Any:
    """The ONNX program of `frozen`, with a `save`; weights int8 and biases int32 inside.

    Activations of fewer than 8 bits are uint8, clipped behind QuantizeLinear: a clip in front of it would keep
    onnxruntime from making one integer operator of it and the layer before. A linear layer is a Gemm between two
    reshapes: onnxruntime makes one QGemm of it, bias included, and of MatMul and Add two operators. Layers in float
    between integers are fenced off: onnxruntime would quantize their weights by itself.

    Raises:
        JobError: the exporter can't translate the model, or its forward fixes its batch size.
    """
    program = capture_program(_ForOnnx(lower(frozen, inputs)), inputs)
    try:
        with torch.no_grad(), quiet():
            translated = torch.onnx.export(
                program, dynamo=True, verbose=False, opset_version=20, custom_translation_table=_translations()
            )
        assert translated is not None
    except Exception as error:  # the exporter raises whatever its passes raise
        raise JobError(f"the quantized model can't be translated to ONNX: {reason(error)}") from error
    keep_in_float(translated.model.graph)
    forget_code(translated.model)
    translated.model.metadata_props[QUANTIZED_VALUES] = json.dumps(_quantized_values(program, frozen))
    return translated


def _quantized_values(program: ExportedProgram, frozen: FrozenModel) -> dict[str, str]:
    """The integer values of activations in the ONNX file -> the frozen model's steps that quantize them."""
    captured = [n.name for n in program.graph.nodes if n.target is torch.ops.nnicompress.quantize_linear.default]
    steps = [step[0] for step in frozen.frozen_program["steps"] if step[1] == QUANTIZE]
    return dict(zip(captured, steps, strict=True))


class _ForOnnx(nn.Module):
    """Runs a frozen model with operators of our own where ONNX has its own."""

    def __init__(self, frozen: FrozenModel) -> None:
        super().__init__()
        self.frozen = frozen
        forward: Any = functools.partial(_forward, self)
        # The inputs of the file are named as the model's.
        names = frozen.frozen_program["parameters"]
        kind = Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = Signature([Parameter(name, kind, default=None) for name in names])
        self.forward = forward
        self.eval()


def _forward(model: _ForOnnx, *args: Any, **kwargs: Any) -> Any:
    return run(
        model.frozen, args, kwargs, {QUANTIZE: _quantize, DEQUANTIZE: _dequantize, "aten.linear.default": _linear}
    )


@torch.library.custom_op("nnicompress::quantize_linear", mutates_args=())
def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None) -> Tensor:
    return quantize(x, scale, zero_point, low, high, axis)


@_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None) -> Tensor:
    return torch.empty_like(x, dtype=integer_dtype(low, high))


@torch.library.custom_op("nnicompress::dequantize_linear", mutates_args=())
def _dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    return dequantize(x, scale, zero_point, axis)


@_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


@torch.library.custom_op("nnicompress::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return nn.functional.linear(x, weight, bias)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Our operators -> functions that write ONNX's; imported late, since onnxscript is optional."""
    import onnxscript

    op: Any = onnxscript.opset20

    def quantize_linear(x: Any, scale: Any, zero_point: Any, low: int, high: int, axis: int | None = None) -> Any:
        axes = {} if axis is None else {"axis": axis}
        integers = op.QuantizeLinear(x, scale, zero_point, **axes)
        dtype = integer_dtype(low, high)
        if (low, high) == (torch.iinfo(dtype).min, torch.iinfo(dtype).max):  # where QuantizeLinear saturates
            return integers
        kind = {torch.uint8: _UINT8, torch.int8: _INT8}[dtype]
        lowest, highest = (op.Cast(op.Constant(value_int=bound), to=kind) for bound in (low, high))
        return op.Clip(integers, lowest, highest)

    def dequantize_linear(x: Any, scale: Any, zero_point: Any, axis: int | None = None) -> Any:
        axes = {} if axis is None else {"axis": axis}
        return op.DequantizeLinear(x, scale, zero_point, **axes)

    def linear(x: Any, weight: Any, bias: Any = None) -> Any:
        width_in, width_out = weight.shape[1], weight.shape[0]
        flat = x if len(x.shape) == 2 else op.Reshape(x, op.Constant(value_ints=[-1, width_in]))
        result = op.Gemm(flat, weight, transB=1) if bias is None else op.Gemm(flat, weight, bias, transB=1)
        if flat is x:
            return result
        # The shape is read off the integers: read off the floats, it would have them written out for nothing else.
        maker = x.producer()
        whole = maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else x
        leading = op.Shape(whole, end=-1)
        return op.Reshape(result, op.Concat(leading, op.Constant(value_ints=[width_out]), axis=0))

    ours = torch.ops.nnicompress
    return {
        ours.quantize_linear.default: quantize_linear,
        ours.dequantize_linear.default: dequantize_linear,
        ours.linear.default: linear,
    }


_UINT8, _INT8 = 2, 3
"""TensorProto.UINT8 and INT8."""
