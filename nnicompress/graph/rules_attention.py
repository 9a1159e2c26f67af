"""Rules for products of activations: attention, and matrix products in general.

A dimension that two activations contract away stays prunable where one of them is zero at what is removed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from nnicompress.graph.analysis import Analysis, Contraction, Labels, Value, output_shapes
from nnicompress.graph.rules import argument, rule
from nnicompress.graph.widths import Indices


@rule("matmul", "mm", "bmm", "addmm", "baddbmm")
def matrix_product(analysis: Analysis, node: Node) -> Value:
    """[..., m, k] @ [..., k, n]; a product with a parameter is a linear layer [in, out]."""
    *added, left, right = [a for a in node.args if isinstance(a, Node)]
    a, b = analysis.labels(left), analysis.labels(right)
    if right.op == "placeholder" and len(b) == 2:
        analysis.play(right, 0, "input")
        analysis.play(right, 1, "output")
    _contract(analysis, node, (left, a[-1]), (right, b[-2] if len(b) > 1 else b[0]))
    batch = _meet(analysis, node, [(a[:-2], output_shapes(left)[:-2]), (b[:-2], output_shapes(right)[:-2])])
    result = [*batch, *a[-2:-1], *b[-1:]] if len(b) > 1 else [*batch, *a[-2:-1]]
    for bias in added:
        own, shape = analysis.labels(bias), output_shapes(bias)
        for dim in range(1, len(own) + 1):
            if shape[-dim] > 1:
                analysis.unite(own[-dim], result[-dim], node)
    return result


@rule("scaled_dot_product_attention")
def attention(analysis: Analysis, node: Node) -> Value:
    """Query [..., l, e], key [..., s, e], value [..., s, v], additive mask [..., l, s] -> [..., l, v].

    Heads are batch dimensions; with `enable_gqa` each head of keys and values serves a run of query heads.
    """
    q, k, v = (argument(node, position) for position in range(3))
    mask, scale = argument(node, 3, "attn_mask"), argument(node, 6, "scale")
    query, key, value = analysis.labels(q), analysis.labels(k), analysis.labels(v)
    for labels in (query[-2], key[-2], value[-2]):
        analysis.lock(labels, f"{analysis.place(node)} works along this dimension")
    if scale is None:
        for labels in (query[-1], key[-1]):
            analysis.lock(labels, f"{analysis.place(node)} divides by the root of this dimension's size")
    _contract(analysis, node, (q, query[-1]), (k, key[-1]))
    shape = output_shapes(q)[:-2]
    operands = [(query[:-2], shape)]
    for operand, own in ((k, key[:-2]), (v, value[:-2])):
        operands.append(_repeated(own, output_shapes(operand)[:-2], shape))
    if isinstance(mask, Node):
        bias = analysis.labels(mask)
        for along in bias[-2:]:
            analysis.lock(along, f"{analysis.place(node)} works along this dimension")
        operands.append((bias[:-2], output_shapes(mask)[:-2]))
    heads = _meet(analysis, node, operands)
    if len(heads) > 1:
        analysis.mark(heads[-1], "heads")
    for inside in (query[-1], key[-1], value[-1]):
        analysis.mark(inside, "head_dim")
    return [*heads, None, value[-1]]


def _contract(
    analysis: Analysis, node: Node, left: tuple[Node, Indices | None], right: tuple[Node, Indices | None]
) -> None:
    """Sum over a dimension of both: zeros of either side make what is removed disappear."""
    analysis.unite(left[1], right[1], node)
    if left[1] is not None:
        analysis.contractions.append(Contraction(left[1], left[0], right[0], analysis.place(node)))


def _repeated(labels: Labels, shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[Labels, tuple[int, ...]]:
    """Grouped queries: each head of keys stands for a run of query heads."""
    result: Labels = []
    for own, count, target in zip(labels, shape, wanted, strict=True):
        runs = target // count if count > 1 and target != count else 1
        result.append(own if own is None or runs == 1 else np.repeat(own, runs))
    return result, tuple(t if c > 1 else c for c, t in zip(shape, wanted, strict=True))


def _meet(analysis: Analysis, node: Node, operands: list[tuple[Labels, Any]]) -> Labels:
    """Batch dimensions with broadcasting: what meets at the same size is united index by index."""
    rank = max(len(shape) for _, shape in operands)
    result: Labels = [None] * rank
    for dim in range(1, rank + 1):
        meeting = [labels[-dim] for labels, shape in operands if dim <= len(shape) and shape[-dim] > 1]
        labelled = [labels for labels in meeting if labels is not None]
        if labelled:
            for labels in meeting:
                if labels is not labelled[0]:
                    analysis.unite(labelled[0], labels, node)
            result[-dim] = labelled[0] if len(labelled) == len(meeting) else None
    return result
