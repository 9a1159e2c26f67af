"""One rule per operator family: how labels pass through convolutions, norms, pointwise operators and reductions.

An operator without a rule locks what enters it (see `groups.py`): it makes dimensions unprunable, never a wrong model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from nnicompress.graph.analysis import Analysis, Labels, Rule, Value, op_name, output_shapes
from nnicompress.graph.provenance import Size, size_of

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under the names of its operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"two rules for {name}"
            RULES[name] = function
        return function

    return register


def argument(node: Node, position: int, name: str = "", default: Any = None) -> Any:
    """An argument of the ATen operator, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def is_pointwise(node: Node) -> bool:
    """ATen tags elementwise operators itself, all but a few."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or op_name(node) in ("where", "copy", "masked_fill")


def pointwise(analysis: Analysis, node: Node) -> Value:
    """Elementwise with broadcasting: dimensions that meet at the same size are the same channels."""
    shape = output_shapes(node)
    operands = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, Node)]
    result: Labels = [None] * len(shape)
    for dim, count in enumerate(shape):
        if count <= 1:
            continue
        meeting = []
        for operand in operands:
            operand_shape = output_shapes(operand)
            own = dim - len(shape) + len(operand_shape)
            if own >= 0 and operand_shape[own] == count:
                meeting.append(analysis.labels(operand)[own])
        labelled = [labels for labels in meeting if labels is not None]
        if labelled:
            for labels in meeting:
                if labels is not labelled[0]:
                    analysis.unite(labelled[0], labels, node)
            result[dim] = labelled[0]
    return result


@rule(
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout",
    "clone", "contiguous", "alias", "detach", "to", "_to_copy", "lift_fresh_copy", "lift_fresh", "lift",
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "type_as",
)  # fmt: skip
def same_shape(analysis: Analysis, node: Node) -> Value:
    """The output has the input's dimensions."""
    return analysis.labels(argument(node, 0))


@rule("conv1d", "conv2d", "conv3d")
def convolution(analysis: Analysis, node: Node) -> Value:
    """Weight [out, in / groups, *kernel]. With groups, a whole convolution group is kept or removed."""
    x, weight = analysis.labels(argument(node, 0)), analysis.labels(argument(node, 1))
    bias, groups = argument(node, 2, "bias"), int(argument(node, 6, "groups", 1))
    analysis.play(argument(node, 1), 0, "output")
    for kernel in weight[2:]:
        analysis.lock(kernel, "a kernel's spatial dimension")
    channel = len(x) - len(weight) + 1  # an unbatched input has no dimension 0
    _fixed(analysis, node, [labels for dim, labels in enumerate(x) if dim != channel])
    if groups == 1:
        analysis.play(argument(node, 1), 1, "input")
        analysis.unite(x[channel], weight[1], node)
        out = weight[0]
    else:
        analysis.lock(weight[1], "inside a convolution group")
        out = _grouped(analysis, node, x[channel], weight[0], groups)
    if isinstance(bias, Node):
        analysis.unite(analysis.labels(bias)[0], out, node)
    result: Labels = [None] * len(x)
    result[channel] = out
    return result


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(analysis: Analysis, node: Node) -> Value:
    """Weight [in, out / groups, *kernel]."""
    x, weight = analysis.labels(argument(node, 0)), analysis.labels(argument(node, 1))
    bias, groups = argument(node, 2, "bias"), int(argument(node, 6, "groups", 1))
    for kernel in weight[2:]:
        analysis.lock(kernel, "a kernel's spatial dimension")
    channel = len(x) - len(weight) + 1
    _fixed(analysis, node, [labels for dim, labels in enumerate(x) if dim != channel])
    analysis.play(argument(node, 1), 0, "input")
    analysis.unite(x[channel], weight[0], node)
    if groups == 1:
        analysis.play(argument(node, 1), 1, "output")
        out = weight[1]
    else:
        analysis.lock(weight[1], "inside a convolution group")
        out = analysis.atoms.new(output_shapes(node)[channel])
        out = _grouped(analysis, node, x[channel], out, groups)
    if isinstance(bias, Node):
        analysis.unite(analysis.labels(bias)[0], out, node)
    result: Labels = [None] * len(x)
    result[channel] = out
    return result


def _grouped(analysis: Analysis, node: Node, x: Any, out: Any, groups: int) -> Any:
    """Input and output channels of one convolution group are one channel group; `groups` follows."""
    if x is None:
        analysis.lock(out, f"{analysis.place(node)} has a fixed input")
        return out
    if out is None:  # one output channel in all: the groups can't be
        analysis.lock(x, f"{analysis.place(node)} has one output channel")
        return out
    rows = analysis.tie_outer(x, groups)
    analysis.atoms.unite(rows, analysis.tie_outer(out, groups))
    given = analysis.argument(node, 6, "groups")
    analysis.constrain(rows, size_of(groups if given is None else given), node)
    return out


@rule("linear")
def linear(analysis: Analysis, node: Node) -> Value:
    """Weight [out, in] on the last dimension."""
    x, weight = analysis.labels(argument(node, 0)), analysis.labels(argument(node, 1))
    bias = argument(node, 2, "bias")
    analysis.play(argument(node, 1), 0, "output")
    analysis.play(argument(node, 1), 1, "input")
    analysis.unite(x[-1], weight[1], node)
    if isinstance(bias, Node):
        analysis.unite(analysis.labels(bias)[0], weight[0], node)
    return [*x[:-1], weight[0]]


@rule("batch_norm", "instance_norm")
def batch_norm(analysis: Analysis, node: Node) -> Value:
    """Statistics per channel (dimension 1): weight, bias and running statistics are slots of that channel."""
    x = analysis.labels(argument(node, 0))
    for operand in node.args[1:5]:
        if isinstance(operand, Node):
            analysis.unite(x[1], analysis.labels(operand)[0], node)
    _fixed(analysis, node, [x[0], *x[2:]])
    return [None, x[1], *[None] * (len(x) - 2)]


@rule("group_norm")
def group_norm(analysis: Analysis, node: Node) -> Value:
    """Statistics over each group of channels: a whole group is kept or removed, so that statistics never change."""
    x, groups = analysis.labels(argument(node, 0)), int(argument(node, 1))
    _fixed(analysis, node, [x[0], *x[2:]])
    channels = x[1]
    if channels is not None:
        if groups == 1:
            analysis.summarise(channels, node, f"{analysis.place(node)} takes its statistics over the whole width")
        else:
            rows = analysis.tie_outer(channels, groups)
            given = analysis.argument(node, 1, "num_groups")
            analysis.constrain(rows, size_of(groups if given is None else given), node)
    for position, name in ((2, "weight"), (3, "bias")):
        operand = argument(node, position, name)
        if isinstance(operand, Node):
            analysis.unite(channels, analysis.labels(operand)[0], node)
    return [None, channels, *[None] * (len(x) - 2)]


@rule("layer_norm", "rms_norm")
def layer_norm(analysis: Analysis, node: Node) -> Value:
    """Statistics over the last dimensions."""
    x, normalized = analysis.labels(argument(node, 0)), len(argument(node, 1))
    reason = f"{analysis.place(node)} takes its statistics over the whole width"
    if normalized > 1:
        for labels in x[-normalized:]:
            analysis.lock(labels, reason)
    else:
        analysis.summarise(x[-1], node, reason)
        given = analysis.argument(node, 1, "normalized_shape")
        size = size_of(given[0]) if given else Size(int(argument(node, 1)[0]))
        analysis.constrain(x[-1], size, node)
    for position, name in ((2, "weight"), (3, "bias")):
        operand = argument(node, position, name)
        if isinstance(operand, Node):
            for own, labels in zip(analysis.labels(operand), x[-normalized:], strict=True):
                analysis.unite(own, labels, node)
    return x


@rule("prelu")
def prelu(analysis: Analysis, node: Node) -> Value:
    """A slope for each channel, or one for all."""
    x, slope = analysis.labels(argument(node, 0)), analysis.labels(argument(node, 1))
    if slope[0] is not None:
        analysis.unite(x[1], slope[0], node)
    return x


@rule("embedding")
def embedding(analysis: Analysis, node: Node) -> Value:
    """Weight [entries, width]: the entries are looked up by value and must stay."""
    weight, indices = analysis.labels(argument(node, 0)), analysis.labels(argument(node, 1))
    analysis.lock(weight[0], "an embedding's entries are looked up by their number")
    analysis.play(argument(node, 0), 1, "output")
    return [*indices, weight[1]]


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d",
    "upsample_linear1d", "upsample_trilinear3d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa",
    "max_pool2d_with_indices",
)  # fmt: skip
def spatial(analysis: Analysis, node: Node) -> Value:
    """Pooling and interpolation work on space; batch and channels pass."""
    x = analysis.labels(argument(node, 0))
    spaces = {"1": 1, "2": 2, "3": 3}[next(c for c in str(node.target) if c in "123")]
    _fixed(analysis, node, x[-spaces:])
    result: Labels = [*x[:-spaces], *[None] * spaces]
    return result if isinstance(node.meta["val"], torch.Tensor) else [result, list(result)]


_MOMENTS = frozenset({"mean", "var", "std", "sum", "linalg_vector_norm"})
"""Reductions that norms are written with."""


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm", "prod", "argmax", "argmin")
def reduction(analysis: Analysis, node: Node) -> Value:
    """Over fixed dimensions only; what is averaged or summed over can't shrink unseen."""
    x, shape = analysis.labels(argument(node, 0)), output_shapes(node)
    dims = argument(node, 2 if op_name(node) == "linalg_vector_norm" else 1, "dim")
    if isinstance(dims, bool):  # var(x, unbiased), over everything
        dims = None
    reduced = _dims(dims, len(x))
    for dim in reduced:
        reason = f"{analysis.place(node)} reduces over this dimension"
        if len(reduced) == 1 and op_name(node) in _MOMENTS:
            analysis.summarise(x[dim], node, reason)
        else:
            analysis.lock(x[dim], reason)
    if len(shape) == len(x):
        return [None if dim in reduced else labels for dim, labels in enumerate(x)]
    return [labels for dim, labels in enumerate(x) if dim not in reduced]


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod")
def along_dimension(analysis: Analysis, node: Node) -> Value:
    """Every output depends on the whole dimension, which therefore must stay."""
    x = analysis.labels(argument(node, 0))
    for dim in _dims(argument(node, 1), len(x)):
        analysis.lock(x[dim], f"{analysis.place(node)} works along this dimension")
    return x


def _dims(dims: Any, rank: int) -> set[int]:
    if dims is None or dims == []:
        return set(range(rank))
    return {int(dim) % rank for dim in (dims if isinstance(dims, (list, tuple)) else [dims])}


def _fixed(analysis: Analysis, node: Node, labels: list[Any]) -> None:
    for own in labels:
        analysis.lock(own, f"{analysis.place(node)} works across this dimension")
