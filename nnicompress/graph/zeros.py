"""Which values of the masked model are zero at the indices that are removed.

Masks fill parameters with zeros. A linear layer hands them on (its weight's row and its bias are zero), a sigmoid makes
0.5 of them. Where two activations are multiplied and summed over a prunable dimension (queries and keys), the masked
model equals the compact one only if one of the two still is zero there.
"""

from __future__ import annotations

from torch.fx import Node

from nnicompress.graph.analysis import Analysis, op_name
from nnicompress.graph.widths import Indices

_KEEPS_ZERO = frozenset({
    "relu", "relu6", "leaky_relu", "gelu", "silu", "mish", "hardswish", "elu", "selu", "celu", "tanh", "hardtanh",
    "sin", "neg", "abs", "sign", "sqrt", "square", "erf", "round", "dropout", "feature_dropout", "native_dropout",
    "clone", "contiguous", "alias", "detach", "to", "_to_copy", "type_as", "view", "view_as", "reshape", "_unsafe_view",
    "flatten", "unflatten", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "expand_as", "slice",
    "narrow", "select", "chunk", "split", "split_with_sizes", "unbind", "getitem", "roll", "flip", "movedim",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_avg_pool1d", "upsample_bilinear2d",
    "upsample_nearest2d", "mean", "sum", "index",
})  # fmt: skip
"""Operators of one tensor that make zeros of zeros."""


_CHANNEL = {
    "linear": (1, -1), "addmm": (2, -1), "conv1d": (1, 1), "conv2d": (1, 1), "conv3d": (1, 1), "embedding": (0, -1),
    "batch_norm": (1, 1), "instance_norm": (1, 1), "group_norm": (2, 1), "layer_norm": (2, -1),
}  # fmt: skip
"""Layers: the position of the parameter that makes their output zero, and the dimension in which it does."""


def lock_contractions(analysis: Analysis) -> None:
    """Lock what two activations are multiplied and summed over, where neither is zero at what would be removed."""
    if not analysis.contractions:
        return
    zeros = _Zeros(analysis)
    for contraction in analysis.contractions:
        if not (zeros.vanishes(contraction.left) or zeros.vanishes(contraction.right)):
            analysis.lock(contraction.labels, f"{contraction.place} sums over it, and what is masked is not zero there")


class _Zeros:
    """Answers for each node, once; what is locked already counts as fixed."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        self._locked = analysis.atoms.locked()
        self._known: dict[Node, bool] = {}

    def vanishes(self, node: Node) -> bool:
        """Whether the masked model's value is zero wherever an index of a prunable dimension is removed."""
        if node not in self._known:
            self._known[node] = self._compute(node)
        return self._known[node]

    def _compute(self, node: Node) -> bool:
        name, operands = op_name(node), node.all_input_nodes
        if node.op == "placeholder":  # masks fill parameters, not buffers
            return self._analysis.captured.tensors.get(node.name) in self._analysis.captured.parameters
        if name in _KEEPS_ZERO:
            return self.vanishes(operands[0])
        if name == "cat":
            return all(self.vanishes(operand) for operand in operands)
        if name == "scaled_dot_product_attention":
            return self.vanishes(operands[2])
        if name not in ("mul", "div", "add", "sub", "matmul", "mm", "bmm", *_CHANNEL):
            return False
        free = self._free_dimensions(node)
        if name == "mul":
            return all(any(self._brings(o, dim) for o in operands) for dim in free)
        if name == "div":
            return isinstance(node.args[0], Node) and all(self._brings(node.args[0], dim) for dim in free)
        if name in ("add", "sub"):
            summed = all(isinstance(a, Node) or a == 0 for a in node.args[:2])
            return summed and all(self._brings(o, dim) for o in operands for dim in free)
        if name in _CHANNEL:
            # What is zero is the row of the weight and the bias: of other dimensions than channels nothing is known.
            weight_at, channel = _CHANNEL[name]
            channel = channel if channel < 0 else channel - len(self._analysis.labels(node))
            weight = node.args[weight_at] if len(node.args) > weight_at else None
            return isinstance(weight, Node) and self.vanishes(weight) and free <= {channel}
        left, right = operands[0], operands[-1]
        bringers = {-1: [right], -2: [left]}
        return all(any(self._brings(o, dim) for o in bringers.get(dim, [left, right])) for dim in free)

    def _free_dimensions(self, node: Node) -> set[int]:
        """The dimensions, counted from the end, of which something may be removed."""
        labels = self._analysis.labels(node)
        return {dim - len(labels) for dim, own in enumerate(labels) if self._is_free(own)}

    def _is_free(self, labels: Indices | None) -> bool:
        return labels is not None and any(r not in self._locked for r in self._analysis.atoms.find(labels).tolist())

    def _brings(self, operand: Node, dim: int) -> bool:
        """Whether an operand is zero where an index of the result's dimension `dim` (from the end) is removed."""
        labels = self._analysis.labels(operand)
        return len(labels) >= -dim and labels[dim] is not None and self.vanishes(operand)
