"""Modules that take statistics over a prunable width: which they are, and where in their input it lies.

A mean over a masked width counts zeros that the compact model hasn't got. Whatever a module computes of its one input
is right, though, if it is run on the kept channels alone; `pruning/norms.py` does that while channels are masked. So a
statistic is fine inside a module that takes one tensor and returns one with the same channels, and locked elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import Node

from nnicompress.graph.analysis import Analysis, Statistic
from nnicompress.graph.widths import Indices, Norm


@dataclass(frozen=True, eq=False)
class NormPlace:
    """The labels of a norm's channels, in dimension `dim` (from the end) of its input; see `widths.Norm`."""

    dim: int
    labels: Indices
    tensors: Mapping[str, int]


def find_norms(analysis: Analysis) -> dict[str, NormPlace]:
    """Module -> where its channels are. Statistics elsewhere lock what they are taken over."""
    found: dict[str, NormPlace] = {}
    if not analysis.statistics:
        return found
    inside: dict[str, list[Node]] = defaultdict(list)
    for node in analysis.captured.graph.nodes:
        if node.op == "call_function":
            inside[analysis.captured.module_of(node)].append(node)
    for statistic in analysis.statistics:
        module = analysis.captured.module_of(statistic.node)
        if module not in found:
            place = _place(analysis, module, inside, statistic)
            if place is None:
                analysis.lock(statistic.labels, statistic.reason)
            else:
                found[module] = place
    return found


def _place(analysis: Analysis, module: str, inside: Mapping[str, list[Node]], statistic: Statistic) -> NormPlace | None:
    if not module or any(other.startswith(f"{module}.") for other in inside):
        return None
    own = set(inside[module])
    entering = {n for node in own for n in node.all_input_nodes if n not in own and not _is_tensor(analysis, n)}
    leaving = {node for node in own if any(user not in own for user in node.users)}
    wanted = analysis.atoms.find(statistic.labels)
    places = [_where(analysis, node, wanted) for node in (*entering, *leaving)]
    first = places[0] if places else None
    if first is None or any(p is None or p[0] != first[0] or not np.array_equal(p[1], first[1]) for p in places):
        return None
    tensors: dict[str, int] = {}
    for (tensor, dim), labels in analysis.slots.items():
        owner, _, leaf = tensor.rpartition(".")
        if owner == module and np.isin(analysis.atoms.find(labels), first[1]).any():
            if len(labels) != len(first[1]) or leaf in tensors:
                return None
            tensors[leaf] = dim
    return NormPlace(first[0], first[1], tensors)


def _where(analysis: Analysis, node: Node, wanted: Indices) -> tuple[int, Indices] | None:
    """The one dimension (from the end) that holds what a statistic is taken over, and its representatives."""
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    found = []
    labels = analysis.labels(node)
    for dim, own in enumerate(labels):
        if own is not None and np.isin(roots := analysis.atoms.find(own), wanted).any():
            found.append((dim - len(labels), roots))
    return found[0] if len(found) == 1 else None


def _is_tensor(analysis: Analysis, node: Node) -> bool:
    return node.op == "placeholder" and node.name in analysis.captured.tensors


def numbered(analysis: Analysis, norms: Mapping[str, NormPlace], numbers: Indices) -> tuple[Norm, ...]:
    """The norms that have prunable channels, which are numbered by representative."""
    placed: Iterable[tuple[str, NormPlace, Indices]] = (
        (module, place, numbers[analysis.atoms.find(place.labels)]) for module, place in norms.items()
    )
    return tuple(Norm(m, place.dim, channels, place.tensors) for m, place, channels in placed if (channels >= 0).any())
