"""Rules for operators that rearrange dimensions: views, permutations, expansion, and constants of a given shape."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from nnicompress.graph.analysis import Analysis, Labels, Value, op_name, output_shapes
from nnicompress.graph.provenance import ShapeOf, Size
from nnicompress.graph.rules import argument, rule
from nnicompress.graph.widths import Indices


@rule("view", "view_as", "reshape", "reshape_as", "_unsafe_view", "flatten", "unflatten", "_reshape_alias")
def view(analysis: Analysis, node: Node) -> Value:
    """Row-major reshaping: dimensions fall into segments of equal product, each reshaped by itself."""
    x, before, after = analysis.labels(argument(node, 0)), output_shapes(argument(node, 0)), output_shapes(node)
    if op_name(node) in ("flatten", "view_as", "reshape_as"):
        sizes = [Size(-1)] * len(after)
    else:
        sizes = _view_sizes(analysis, node, after)
    result: Labels = [None] * len(after)
    for own, new in _segments(before, after):
        _reshape_segment(analysis, node, [(x[d], before[d]) for d in own], new, after, sizes, result)
    if op_name(node) in ("view_as", "reshape_as"):
        for own_labels, other in zip(result, analysis.labels(argument(node, 1)), strict=True):
            analysis.unite(own_labels, other, node)
    return result


def _view_sizes(analysis: Analysis, node: Node, after: tuple[int, ...]) -> list[Size]:
    if op_name(node) != "unflatten":
        return analysis.sizes(node, after)
    dim = int(argument(node, 1)) % (len(after))
    count = len(argument(node, 2))
    sizes = [Size(-1)] * len(after)
    sizes[dim : dim + count] = analysis.sizes(node, after[dim : dim + count])
    return sizes


def _segments(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Minimal runs of dimensions whose products agree: (4, 6, 5) -> (24, 5) gives [([0, 1], [0]), ([2], [1])]."""
    segments: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        own, new = [i] if i < len(before) else [], [j] if j < len(after) else []
        a, b = (before[i] if own else 1), (after[j] if new else 1)
        i, j = i + len(own), j + len(new)
        while a != b:
            if a < b:
                a, own, i = a * before[i], [*own, i], i + 1
            else:
                b, new, j = b * after[j], [*new, j], j + 1
        segments.append((own, new))
    return segments


def _reshape_segment(
    analysis: Analysis,
    node: Node,
    own: list[tuple[Indices | None, int]],
    new: list[int],
    after: tuple[int, ...],
    sizes: list[Size],
    result: Labels,
) -> None:
    """Labels of one segment's new dimensions, written into `result`."""
    labelled = [position for position, (labels, _) in enumerate(own) if labels is not None]
    if not labelled:
        for dim in new:
            analysis.constrain(None, sizes[dim], node)
        return
    main = max(labelled, key=lambda position: own[position][1])
    for position in labelled:
        if position != main:
            analysis.lock(own[position][0], f"{analysis.place(node)} merges two prunable dimensions")
    labels = own[main][0]
    assert labels is not None
    shape = [1] * len(own)
    shape[main] = len(labels)
    flat = np.broadcast_to(labels.reshape(shape), [count for _, count in own])
    split = [dim for dim in new if after[dim] > 1]
    if len(split) <= 1:
        for dim in split:
            result[dim] = flat.reshape(-1)
            analysis.constrain(result[dim], sizes[dim], node)
        return
    _split(analysis, node, flat.reshape([after[dim] for dim in split]), split, sizes, result)


def _split(analysis: Analysis, node: Node, flat: Indices, split: list[int], sizes: list[Size], result: Labels) -> None:
    """One dimension becomes several; exactly one of them carries the channel groups.

    Where the labels already vary along one new dimension only, that is the one. Otherwise (channel shuffle, heads)
    the others are tied: the first new dimension whose size can follow a removal is chosen, those read from a shape
    before those read from an attribute. Inside heads it is the last one that can follow.
    """
    roots = analysis.atoms.find(flat.ravel()).reshape(flat.shape)
    for axis in range(len(split)):
        along = np.moveaxis(roots, axis, 0).reshape(flat.shape[axis], -1)
        if (along == along[:, :1]).all():
            _carry(analysis, node, flat, axis, split, sizes, result)
            return
    follows = [dim for dim in split if sizes[dim].value == -1 or _from_shape(sizes[dim])]
    follows += [dim for dim in split if sizes[dim].origins and dim not in follows]
    if analysis.inside_heads:
        follows = sorted(follows, reverse=True)
    if not follows:
        analysis.lock(flat, f"{analysis.place(node)} splits it by literal numbers")
        return
    _carry(analysis, node, flat, split.index(follows[0]), split, sizes, result)


def _carry(
    analysis: Analysis, node: Node, flat: Indices, axis: int, split: list[int], sizes: list[Size], result: Labels
) -> None:
    """New dimension `split[axis]` carries the channel groups; the others become fixed."""
    along = np.moveaxis(flat, axis, 0).reshape(flat.shape[axis], -1)
    analysis.atoms.unite(along, along[:, :1])
    result[split[axis]] = along[:, 0]
    for dim in split:
        analysis.constrain(result[dim], sizes[dim], node)


def _from_shape(size: Size) -> bool:
    return any(isinstance(origin, ShapeOf) for origin in size.origins)


@rule("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "numpy_T", "mT")
def permutation(analysis: Analysis, node: Node) -> Value:
    """Dimensions change places; which went where is asked of NumPy on the captured shape's ranks."""
    x = analysis.labels(argument(node, 0))
    probe = np.empty(range(1, len(x) + 1))
    name = op_name(node)
    if name == "permute":
        moved = probe.transpose([int(d) for d in argument(node, 1)])
    elif name in ("transpose", "swapaxes", "swapdims"):
        moved = probe.swapaxes(int(argument(node, 1)), int(argument(node, 2)))
    elif name in ("movedim", "moveaxis"):
        moved = np.moveaxis(probe, argument(node, 1), argument(node, 2))
    elif name == "mT":
        moved = probe.swapaxes(-1, -2)
    else:
        moved = probe.T
    return [x[size - 1] for size in moved.shape]


@rule("unsqueeze")
def unsqueeze(analysis: Analysis, node: Node) -> Value:
    """A new dimension of size 1."""
    x = analysis.labels(argument(node, 0))
    dim = int(argument(node, 1)) % (len(x) + 1)
    return [*x[:dim], None, *x[dim:]]


@rule("squeeze")
def squeeze(analysis: Analysis, node: Node) -> Value:
    """Dimensions of size 1 go, all or those named."""
    x, shape = analysis.labels(argument(node, 0)), output_shapes(argument(node, 0))
    dims = argument(node, 1, "dim")
    named = range(len(x)) if dims is None else [d % len(x) for d in (dims if isinstance(dims, list) else [dims])]
    return [labels for dim, labels in enumerate(x) if not (dim in named and shape[dim] == 1)]


@rule("expand", "expand_as", "broadcast_to")
def expand(analysis: Analysis, node: Node) -> Value:
    """A dimension of size 1 is repeated: it carries the labels of the dimension that its new size was read from."""
    x, before, after = analysis.labels(argument(node, 0)), output_shapes(argument(node, 0)), output_shapes(node)
    new = len(after) - len(before)
    if op_name(node) == "expand_as":
        other = analysis.labels(argument(node, 1))
        return [
            other[dim] if dim < new or before[dim - new] != count else x[dim - new] for dim, count in enumerate(after)
        ]
    sizes = analysis.sizes(node, after)
    result: Labels = []
    for dim, count in enumerate(after):
        if dim >= new and before[dim - new] == count:
            result.append(x[dim - new])
            analysis.constrain(x[dim - new], sizes[dim], node)
        else:
            result.append(_same_size(analysis, node, sizes[dim]))
    return result


@rule("repeat")
def repeat(analysis: Analysis, node: Node) -> Value:
    """Copies laid end to end along each dimension; new dimensions come first."""
    x, shape, times = analysis.labels(argument(node, 0)), output_shapes(argument(node, 0)), argument(node, 1)
    new = len(times) - len(x)
    sizes = analysis.sizes(node, times)
    result: Labels = [None] * new
    for labels, count, number, size in zip(x, shape, times[new:], sizes[new:], strict=True):
        if labels is None and count == 1 and size.origins:
            result.append(_same_size(analysis, node, size))
        else:
            analysis.constrain(None, size, node)
            result.append(labels if labels is None or number == 1 else np.tile(labels, number))
    return result


@rule("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty")
def creation(analysis: Analysis, node: Node) -> Value:
    """A constant tensor follows the shapes and attributes that its sizes were read from."""
    result: Labels = []
    for count, size in zip(output_shapes(node), analysis.sizes(node, output_shapes(node)), strict=True):
        if count > 1 and size.origins and not _from_shape(size) and "rand" not in op_name(node):
            # All its indices are alike: whatever they meet, and however many go, the attribute can follow.
            result.append(analysis.atoms.new(count))
            analysis.constrain(result[-1], size, node)
        else:
            result.append(_same_size(analysis, node, size))
    return result


def _same_size(analysis: Analysis, node: Node, size: Size) -> Indices | None:
    """The labels of the dimension whose whole size this is, or None."""
    labels = None
    if len(size.origins) == 1 and size.coefficient == 1:
        labels = analysis.origin_labels(size.origins[0])
    analysis.constrain(labels, size, node)
    return labels
