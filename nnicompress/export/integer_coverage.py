"""Which operators of an ONNX file onnxruntime runs in integers on this machine, and why the others stay in float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnicompress.export.onnx_session import optimised_graph

INTEGER_KERNELS = frozenset(
    (
        *("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"),
        *("DynamicQuantizeMatMul", "QAttention", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearWhere"),
        *("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearReduceMean", "QLinearSigmoid"),
        *("QLinearLeakyRelu", "QLinearSoftmax", "QEmbedLayerNormalization", "QOrderedMatMul", "MatMulNBits"),
    )
)
WEIGHTED = frozenset(("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"))
"""Operators in float that multiply matrices: nearly all of a network's time."""
_KERNEL_OF = {
    **dict.fromkeys(("Conv", "FusedConv"), "QLinearConv"),
    **dict.fromkeys(("Gemm", "FusedGemm", "MatMul", "FusedMatMul"), "an integer product"),
    **{
        name: f"QLinear{name}"
        for name in (
            "Add",
            "Mul",
            "AveragePool",
            "GlobalAveragePool",
            "Sigmoid",
            "LeakyRelu",
            "Softmax",
            "Concat",
            "Where",
        )
    },
}
"""Float operators that onnxruntime replaces where they stand between DequantizeLinear and QuantizeLinear."""
_NO_OUTPUT_NEEDED = frozenset(("Gemm", "FusedGemm", "MatMul", "FusedMatMul"))
_MOVES = frozenset(
    (
        *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Gather", "Expand"),
        *("GatherND", "GatherElements", "MaxPool", "Pad", "Tile", "Resize", "Cast", "ConstantOfShape", "Range", "Size"),
        *("Shape", "ReorderInput", "ReorderOutput", "DepthToSpace", "SpaceToDepth", "ScatterND", "Constant", "Trilu"),
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    )
)
"""Operators that move values, change their type or give a shape; they have no arithmetic to do in integers."""
_ACTIVATIONS = frozenset(("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh"))
"""What onnxruntime makes part of a convolution or a product in float."""
_BLOCKED = "_nchwc"
"""Behind the name of what an operator makes, in the name of the one that makes it with channels in blocks."""
FENCE = "Max"
"""Of one tensor it changes nothing: `float_layers` puts it in front of layers that are to stay in float."""
_BOOLEAN = frozenset(
    ("And", "Or", "Not", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf")
)
_FLOATS = (1, 10, 11, 16)
"""TensorProto's FLOAT, FLOAT16, DOUBLE and BFLOAT16."""
_INT64, _BOOL = 7, 9


@dataclass(frozen=True)
class FloatOperator:
    """An operator that computes in float: the name of its node, its type, and why."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True)
class IntegerCoverage:
    """How much of a file's arithmetic runs in integers.

    `integer` counts operators by their type, `floating` lists the others. Operators that only move values, and those on
    shapes and masks, are in neither.
    """

    integer: Mapping[str, int]
    floating: tuple[FloatOperator, ...]

    @property
    def weighted_in_float(self) -> tuple[FloatOperator, ...]:
        """Convolutions, linear layers and products of matrices that stay in float."""
        return tuple(operator for operator in self.floating if operator.operator in WEIGHTED)

    @property
    def share(self) -> float:
        """Operators in integers over all that compute; 0 where nothing does."""
        count = sum(self.integer.values())
        return count / max(count + len(self.floating), 1)

    @property
    def summary(self) -> str:
        """One line for a report."""
        types = ", ".join(f"{count} {kind}" for kind, count in sorted(self.integer.items())) or "none"
        left = Counter(operator.operator for operator in self.floating)
        rest = ", ".join(f"{count} {kind}" for kind, count in sorted(left.items())) or "none"
        return f"in integers: {types}; in float: {rest}"


def integer_coverage(path: Path) -> IntegerCoverage:
    """Look into the graph that onnxruntime makes of the file `path` on this machine."""
    import onnx

    layers = _layers(onnx.load(path, load_external_data=False).graph)
    model = optimised_graph(path)
    types = _types(model.graph)
    makers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    integer: Counter[str] = Counter()
    floating = []
    for node in model.graph.node:
        if node.op_type in INTEGER_KERNELS:
            integer[node.op_type] += 1
        elif _computes(node) and any(types.get(output) in _FLOATS for output in node.output):
            floating.append(FloatOperator(node.name, node.op_type, _reason(node, makers, readers, types, layers)))
    return IntegerCoverage(dict(integer), tuple(floating))


def _computes(node: Any) -> bool:
    return node.op_type not in _MOVES and not (node.op_type == FENCE and len(node.input) == 1)


def _layers(graph: Any) -> dict[str, str]:
    """What layers of the file make, also behind an activation function -> the module whose weights they have."""
    found: dict[str, str] = {}
    for node in graph.node:
        module = _module(node.input[1]) if node.op_type in WEIGHTED else ""
        if module:
            found[node.output[0]] = module
        elif node.op_type in _ACTIVATIONS and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _module(weight: str) -> str:
    """The module's name in that of its weight in the file; empty where the weight was computed."""
    module, _, parameter = weight.removeprefix("frozen.").rpartition(".")
    return module if parameter == "weight" else ""


def _reason(
    node: Any,
    makers: Mapping[str, Any],
    readers: Mapping[str, list[Any]],
    types: Mapping[str, int],
    layers: Mapping[str, str],
) -> str:
    if node.op_type not in _KERNEL_OF:
        return f"onnxruntime has no integer kernel for {node.op_type}"
    operands = [value for value in node.input[:2] if types.get(value) in _FLOATS]
    made = {value: makers[value].op_type if value in makers else "" for value in operands}
    bare = [value for value in operands if made[value] != "DequantizeLinear"]
    if bare:
        if node.op_type in WEIGHTED and node.input[1] in bare:
            layer = _module(node.input[1]) or layers.get(_name_in_file(node.output[0], makers))
            if layer:
                return f"not quantized: {layer}"
        return f"not quantized: {', '.join(_name_in_file(value, makers) for value in bare)}"
    followers = [reader.op_type for output in node.output for reader in readers.get(output, [])]
    if node.op_type not in _NO_OUTPUT_NEEDED and followers != ["QuantizeLinear"]:
        found = ", ".join(sorted(set(followers))) or "the model's output"
        return f"{_KERNEL_OF[node.op_type]} needs its output quantized, and it goes to {found}"
    activation = next((a.s.decode() for a in node.attribute if a.name == "activation"), "")
    if activation:
        return f"{activation} stands between it and its quantized output"
    return f"onnxruntime did not make {_KERNEL_OF[node.op_type]} of it, with quantized operands"


def _name_in_file(value: str, makers: Mapping[str, Any]) -> str:
    """The name of a value before onnxruntime arranged its channels in blocks, where it was given one for that."""
    maker = makers.get(value)
    if maker is not None and maker.op_type == "ReorderInput":
        return _name_in_file(maker.input[0], makers)
    if maker is not None and maker.name.endswith(_BLOCKED):
        return str(maker.name.removesuffix(_BLOCKED))
    return value


def _types(graph: Any) -> dict[str, int]:
    """The element type of every value, as far as it matters here: float or not.

    onnx's own inference stops at onnxruntime's operators; all that are met here give what their first input is, or
    say what they give.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    types[""] = 0
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type in INTEGER_KERNELS:
            to_float = node.op_type in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention", "MatMulNBits")
            kind = _FLOATS[0] if to_float or (node.op_type == "QGemm" and len(node.input) < 9) else 2
        elif node.op_type in ("Shape", "Size", "ArgMax", "ArgMin", "NonZero"):
            kind = _INT64
        elif node.op_type in _BOOLEAN:
            kind = _BOOL
        elif node.op_type == "Cast":
            kind = attributes["to"].i
        elif node.op_type in ("Constant", "ConstantOfShape"):
            kind = attributes["value"].t.data_type if "value" in attributes else _FLOATS[0]
        elif node.op_type == "DequantizeLinear":
            kind = _FLOATS[0]
        elif node.op_type == "QuantizeLinear":
            kind = types.get(node.input[2], 2) if len(node.input) > 2 else 2
        else:
            # The condition of a Where, and the tokens of an embedding, come before what the result is made of.
            kind = types.get(node.input[1 if node.op_type == "Where" else 0], 0) if node.input else 0
        for output in node.output:
            types.setdefault(output, kind)
    return types
