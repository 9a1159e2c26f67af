"""Keeping layers in float in an ONNX file that onnxruntime would quantize by itself."""

from __future__ import annotations

from typing import Any

from nnicompress.export.integer_coverage import FENCE

_LAYERS = frozenset(("Conv", "ConvTranspose", "Gemm"))
"""Operators whose weights onnxruntime quantizes where it finds integers in front of them and behind."""
_MOVES = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "MaxPool"))
"""Operators through which it carries a QuantizeLinear or a DequantizeLinear."""
_BOUNDS = frozenset(("Relu", "Clip"))


def keep_in_float(graph: Any) -> None:
    """Fence off each layer of `graph` (of onnxscript.ir) with weights in float that stands between integers.

    onnxruntime would round the weights of such a layer to 8 bits, with one scale for all of its channels
    (`WeightBiasQuantization`), and compute it in integers. It stops where anything but integers is in front: the
    maximum of one tensor, which costs one pass over it.
    """
    from onnxscript import ir

    for node in list(graph):
        if node.op_type not in _LAYERS or len(node.inputs) < 2:
            continue
        value, weight = node.inputs[0], node.inputs[1]
        if not _comes_from_integers(value) or _comes_from_integers(weight) or not _becomes_integers(node):
            continue
        fence = ir.Node("", FENCE, [value], name=f"{node.name}_in_float")
        fence.outputs[0].name = f"{value.name}_for_{node.name}"
        fence.outputs[0].shape, fence.outputs[0].type = value.shape, value.type
        graph.insert_before(node, fence)
        node.replace_input_with(0, fence.outputs[0])


def _comes_from_integers(value: Any) -> bool:
    maker = value.producer()
    while maker is not None and maker.op_type in _MOVES:
        maker = maker.inputs[0].producer()
    return maker is not None and maker.op_type == "DequantizeLinear"


def _becomes_integers(node: Any) -> bool:
    readers = [use.node for value in node.outputs for use in value.uses()]
    return any(
        reader.op_type == "QuantizeLinear" or (reader.op_type in _MOVES | _BOUNDS and _becomes_integers(reader))
        for reader in readers
    )
