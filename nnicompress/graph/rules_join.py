"""Rules for operators that join dimensions or take them apart: concatenation, splits, slices, padding, shuffles."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from torch.fx import Node

from nnicompress.graph.analysis import Analysis, Labels, Value, concatenated, op_name, output_shapes
from nnicompress.graph.provenance import Size, size_of
from nnicompress.graph.rules import argument, rule
from nnicompress.graph.widths import Indices


@rule("cat", "concat", "concatenate")
def concatenate(analysis: Analysis, node: Node) -> Value:
    """Labels laid end to end along `dim`; the other dimensions meet index by index."""
    tensors: list[Node] = [t for t in argument(node, 0) if output_shapes(t) != (0,)]
    parts = [analysis.labels(tensor) for tensor in tensors]
    rank = len(output_shapes(node))
    dim = int(argument(node, 1, "dim", 0)) % rank
    result: Labels = []
    for own in range(rank):
        if own == dim:
            counted = [(part[own], output_shapes(t)[own]) for part, t in zip(parts, tensors, strict=True)]
            result.append(concatenated(analysis, counted, f"{analysis.place(node)} joins it with a fixed dimension"))
        else:
            for part in parts[1:]:
                analysis.unite(parts[0][own], part[own], node)
            result.append(parts[0][own])
    return result


@rule("stack")
def stack(analysis: Analysis, node: Node) -> Value:
    """A new dimension; all others meet index by index."""
    parts = [analysis.labels(tensor) for tensor in argument(node, 0)]
    dim = int(argument(node, 1, "dim", 0)) % (len(parts[0]) + 1)
    for part in parts[1:]:
        for left, right in zip(parts[0], part, strict=True):
            analysis.unite(left, right, node)
    return [*parts[0][:dim], None, *parts[0][dim:]]


@rule("chunk", "split", "split_with_sizes", "tensor_split")
def split(analysis: Analysis, node: Node) -> Value:
    """Parts along `dim`. Equal parts computed from the shape stay equal, so index j of every part is one group."""
    x = analysis.labels(argument(node, 0))
    dim = int(argument(node, 2, "dim", 0)) % len(x)
    counts = [int(part.shape[dim]) for part in node.meta["val"]]
    labels = x[dim]
    if labels is None:
        return [list(x) for _ in counts]
    bounds = np.cumsum([0, *counts])
    pieces = [labels[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    given = analysis.argument(node, 1, "chunks" if op_name(node) == "chunk" else "split_size_or_sections")
    place = analysis.place(node)
    if op_name(node) in ("chunk", "tensor_split") and isinstance(given, int):
        if len(set(counts)) == 1:
            analysis.tie_inner(labels, len(counts))
        else:
            analysis.lock(labels, f"{place} makes unequal parts")
    else:
        sizes = [size_of(g) for g in given] if isinstance(given, (list, tuple)) else None
        if sizes is None:
            sizes = [size_of(given) if given is not None else Size(counts[0])] * len(counts)
            if len(set(counts)) > 1:
                analysis.lock(labels, f"{place} makes unequal parts")
        if len(set(counts)) == 1 and all(size.origins for size in sizes):
            analysis.tie_inner(labels, len(counts))
        for piece, size in zip(pieces, sizes, strict=False):
            analysis.constrain(piece, size, node)
    return [[piece if own == dim else other for own, other in enumerate(x)] for piece in pieces]


@rule("getitem")
def getitem(analysis: Analysis, node: Node) -> Value:
    """One output of an operator that has several."""
    outputs: Any = analysis.values[argument(node, 0)]
    one: Value = outputs[int(argument(node, 1))]
    return one


@rule("unbind")
def unbind(analysis: Analysis, node: Node) -> Value:
    """One output an index: the dimension must stay."""
    x = analysis.labels(argument(node, 0))
    dim = int(argument(node, 1, "dim", 0)) % len(x)
    analysis.lock(x[dim], f"{analysis.place(node)} takes its indices apart")
    return [[*x[:dim], *x[dim + 1 :]] for _ in node.meta["val"]]


@rule("select")
def select(analysis: Analysis, node: Node) -> Value:
    """One index by its number: the dimension must stay."""
    x = analysis.labels(argument(node, 0))
    dim = int(argument(node, 1)) % len(x)
    analysis.lock(x[dim], f"{analysis.place(node)} picks one index by its number")
    return [*x[:dim], *x[dim + 1 :]]


@rule("slice", "narrow")
def slice_(analysis: Analysis, node: Node) -> Value:
    """`x[:, a:b]`: a bound read from the shape moves with it; before a literal bound nothing may be removed."""
    x = analysis.labels(argument(node, 0))
    dim = int(argument(node, 1, "dim", 0)) % len(x)
    labels = x[dim]
    if labels is None:
        return x
    count = len(labels)
    given: tuple[Any, Any]
    if op_name(node) == "narrow":
        start, step = int(argument(node, 2)), 1
        end = start + int(argument(node, 3))
        given = (analysis.argument(node, 2, "start"), analysis.argument(node, 3, "length") if start == 0 else None)
    else:
        start, end, step = argument(node, 2, "start"), argument(node, 3, "end"), int(argument(node, 4, "step", 1))
        given = _bounds(analysis, node)
    bounds = slice(start, end).indices(count)[:2]
    if step != 1:
        analysis.lock(labels, f"{analysis.place(node)} takes every {step}th index")
    for bound, source in zip(bounds, given, strict=True):
        _bound(analysis, node, labels, int(bound), source)
    return [labels[slice(*bounds, step)] if own == dim else other for own, other in enumerate(x)]


def _bound(analysis: Analysis, node: Node, labels: Indices, bound: int, source: Any) -> None:
    if bound in (0, len(labels)):
        return
    size = size_of(source if source is not None else bound)
    if size.origins and size.value > 0:
        _proportional(analysis, node, labels, bound)
        analysis.constrain(labels[:bound], size, node)
    elif size.value < 0 and size.origins:
        analysis.lock(labels, f"{analysis.place(node)} counts a computed number of indices from the end")
    elif size.value < 0:
        analysis.lock(labels[bound:], f"{analysis.place(node)} counts {-size.value} indices from the end")
    else:
        analysis.lock(labels[:bound], f"{analysis.place(node)} counts {bound} indices by a literal number")


def _proportional(analysis: Analysis, node: Node, labels: Indices, bound: int) -> None:
    """A bound at p/q of the dimension stays there if every q-th part loses the same indices."""
    parts = Fraction(bound, len(labels)).denominator
    if len(labels) % parts == 0 and parts < len(labels):
        analysis.tie_inner(labels, parts)
    else:
        analysis.lock(labels, f"{analysis.place(node)} cuts it into uneven parts")


def _bounds(analysis: Analysis, node: Node) -> tuple[Any, Any]:
    """Start and end as the user's `x[...]` gave them: the n-th slice node of a call is its n-th real slice."""
    call = analysis.own_call(node)
    if call is None:
        return None, None
    index = call.args[1] if len(call.args) > 1 else None
    slices = [item for item in (index if isinstance(index, tuple) else (index,)) if isinstance(item, slice)]
    real = [s for s in slices if s.start is not None or s.stop is not None]
    start, end = argument(node, 2, "start"), argument(node, 3, "end")
    matching = [s for s in real if (s.start or 0) == (start or 0) and (s.stop is None or s.stop == end)]
    kinds = {(size_of(s.start or 0), size_of(s.stop or -1)) for s in matching}
    return (matching[0].start, matching[0].stop) if len(kinds) == 1 else (None, None)


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "zero_pad2d")
def pad(analysis: Analysis, node: Node) -> Value:
    """Padding in space passes; padding a labelled dimension puts fixed indices around it."""
    x, amounts = analysis.labels(argument(node, 0)), [int(a) for a in argument(node, 1)]
    result = list(x)
    for pair in range(len(amounts) // 2):
        dim, (before, after) = len(x) - 1 - pair, amounts[2 * pair : 2 * pair + 2]
        labels = x[dim]
        if labels is None or before == after == 0:
            continue
        reason = f"{analysis.place(node)} pads it"
        constant = op_name(node) == "constant_pad_nd" or (
            op_name(node) == "pad" and argument(node, 2, "mode", "constant") == "constant"
        )
        if before < 0 or after < 0 or not constant:
            analysis.lock(labels, reason)
            result[dim] = None
            continue
        parts = [(None, before), (labels, len(labels)), (None, after)]
        result[dim] = concatenated(analysis, [part for part in parts if part[1]], reason)
    return result


@rule("flip")
def flip(analysis: Analysis, node: Node) -> Value:
    """Reversed order along the named dimensions."""
    x = analysis.labels(argument(node, 0))
    dims = {int(dim) % len(x) for dim in argument(node, 1)}
    return [labels[::-1] if labels is not None and dim in dims else labels for dim, labels in enumerate(x)]


@rule("roll")
def roll(analysis: Analysis, node: Node) -> Value:
    """Indices move along the named dimensions, which must stay (without any, all); the others pass."""
    x = analysis.labels(argument(node, 0))
    for dim in argument(node, 2, "dims") or range(len(x)):
        analysis.lock(x[dim], f"{analysis.place(node)} moves indices along this dimension")
    return x


@rule("index")
def index(analysis: Analysis, node: Node) -> Value:
    """`x[:, indices]`: what is looked up by value must stay; what is not indexed passes."""
    x, given = analysis.labels(argument(node, 0)), list(argument(node, 1))
    given += [None] * (len(x) - len(given))
    indexed = [dim for dim, own in enumerate(given) if own is not None]
    for dim in indexed:
        analysis.lock(x[dim], f"{analysis.place(node)} looks indices up by value")
        analysis.lock_all(analysis.values[given[dim]], f"{analysis.place(node)} takes it as indices")
    rank = len(output_shapes(node)) - (len(x) - len(indexed))
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    before = indexed[0] if together else 0
    passing = [labels for dim, labels in enumerate(x) if dim not in indexed]
    return [*passing[:before], *[None] * rank, *passing[before:]]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(analysis: Analysis, node: Node) -> Value:
    """[groups, channels / groups] transposed: index j of every group is one channel group."""
    x, groups = analysis.labels(argument(node, 0)), int(argument(node, 1))
    if x[1] is not None:
        analysis.tie_inner(x[1], groups)
        x[1] = x[1].reshape(groups, -1).T.ravel()
    return x


@rule("pixel_shuffle")
def pixel_shuffle(analysis: Analysis, node: Node) -> Value:
    """[channels * r * r] -> channels: the r * r indices of a channel are one group."""
    x, factor = analysis.labels(argument(node, 0)), int(argument(node, 1))
    for labels in x[-2:]:
        analysis.lock(labels, f"{analysis.place(node)} works across this dimension")
    channels = x[-3]
    outer = None if channels is None else analysis.tie_outer(channels, len(channels) // factor**2)
    return [*x[:-3], outer, None, None]


@rule("glu")
def glu(analysis: Analysis, node: Node) -> Value:
    """The first half gated by the second: index j of both is one channel group."""
    x = analysis.labels(argument(node, 0))
    dim = int(argument(node, 1, "dim", -1)) % len(x)
    labels = x[dim]
    return [
        analysis.tie_inner(labels, 2) if own == dim and labels is not None else other for own, other in enumerate(x)
    ]
