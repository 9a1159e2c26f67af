"""The state while dimensions are followed through a graph: labels of every value, roles, size constraints.

Each dimension of each value carries labels: an array with one atom per index, or None where nothing in that
dimension can be removed (batch, space, sequence). Weights and buffers start with fresh atoms; the rules (`rules*.py`)
carry labels through operators and unite what belongs together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from nnicompress.graph.atoms import Atoms
from nnicompress.graph.capture import Captured
from nnicompress.graph.provenance import AttributeOf, Call, ShapeOf, Size, size_of
from nnicompress.graph.widths import Indices

Labels = list[Indices | None]
"""One entry a dimension."""
Value = Sequence[Indices | None] | Sequence[Sequence[Indices | None]]
"""The labels of one tensor, or of each output of an operator that has several."""


@dataclass(frozen=True, eq=False)
class SizeConstraint:
    """After any removal the kept count of `labels` must equal what the forward computes for `size`.

    No labels: the size is that of a fixed dimension. `call` is the Python-level call that was given the size.
    """

    labels: Indices
    size: Size
    place: str
    call: int | None


@dataclass(frozen=True, eq=False)
class Contraction:
    """Two activations multiplied and summed over `labels`: one of them must be zero at what is removed."""

    labels: Indices
    left: Node
    right: Node
    place: str


@dataclass(frozen=True, eq=False)
class Statistic:
    """`node` sums over `labels`; that is exact if its whole module sees the kept channels alone (see norms.py)."""

    labels: Indices
    node: Node
    reason: str


@dataclass
class Analysis:
    """What the rules read and write."""

    captured: Captured
    shapes: Mapping[str, torch.Size]
    atoms: Atoms = field(default_factory=Atoms)
    values: dict[Node, Value] = field(default_factory=dict)
    slots: dict[tuple[str, int], Indices] = field(default_factory=dict)
    roles: dict[tuple[str, int], str] = field(default_factory=dict)
    constraints: list[SizeConstraint] = field(default_factory=list)
    inside_heads: bool = False
    """Attention loses dimensions inside its heads, not whole heads."""
    hidden: bool = False
    """Norms leave removed channels out of their statistics, so that the width they work on can be pruned."""
    statistics: list[Statistic] = field(default_factory=list)
    marks: list[tuple[Indices, str]] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    _node_of_call: dict[int, Node] = field(default_factory=dict)

    def placeholder(self, node: Node) -> None:
        """Parameters and buffers get one atom an index; the model's inputs and lifted constants are fixed."""
        tensor = self.captured.tensors.get(node.name)
        if tensor is None or tensor not in self.shapes:
            self.values[node] = [None] * _rank(node)
            return
        self.values[node] = [self.slot(tensor, dim) for dim in range(len(self.shapes[tensor]))]

    def slot(self, tensor: str, dim: int) -> Indices | None:
        """The atoms of one dimension of a parameter or buffer; None where it has only one index."""
        count = self.shapes[tensor][dim]
        if count <= 1:
            return None
        if (tensor, dim) not in self.slots:
            self.slots[tensor, dim] = self.atoms.new(count)
        return self.slots[tensor, dim]

    def labels(self, value: Any) -> Labels:
        """The labels of a tensor-valued argument."""
        assert isinstance(value, Node), f"not a tensor of the graph: {value!r}"
        return [_one(labels) for labels in self.values[value]]

    def finish(self, node: Node, value: Value) -> None:
        """Record a node's labels, and which Python-level call it belongs to."""
        self.values[node] = value
        call = self.captured.call_of(node)
        if call is not None and "getitem" not in str(node.target):
            self._node_of_call[call] = node

    def place(self, node: Node) -> str:
        """`view in layer1.0` for messages."""
        return f"{op_name(node)} in {self.captured.module_of(node) or 'the model'}"

    def lock(self, labels: Indices | None, reason: str, *, consequence: bool = False) -> None:
        """These indices must stay, for this reason."""
        if labels is not None:
            self.atoms.lock(labels, reason, consequence=consequence)

    def lock_all(self, value: Value, reason: str) -> None:
        """Lock every labelled dimension of a value."""
        for part in value:
            if isinstance(part, (list, tuple)):
                self.lock_all(part, reason)
            else:
                self.lock(_one(part), reason)

    def unite(self, left: Indices | None, right: Indices | None, node: Node) -> None:
        """Two dimensions that meet index by index; one that is fixed fixes the other."""
        if left is not None and right is not None:
            self.atoms.unite(left, right)
        else:
            fixed = left if right is None else right
            self.lock(fixed, f"in {self.place(node)} it meets a fixed dimension", consequence=True)

    def play(self, tensor: Any, dim: int, role: str) -> None:
        """Note that a weight produces (`output`) or consumes (`input`) the width along this dimension."""
        if isinstance(tensor, Node) and tensor.op == "placeholder":
            name = self.captured.tensors.get(tensor.name)
            if name is not None:
                self.roles.setdefault((name, dim), role)

    def summarise(self, labels: Indices | None, node: Node, reason: str) -> None:
        """A statistic over these indices: they must stay, unless hidden widths are to be pruned."""
        if labels is not None and self.hidden:
            self.statistics.append(Statistic(labels, node, reason))
            self.mark(labels, "hidden")
        else:
            self.lock(labels, reason)

    def mark(self, labels: Indices | None, kind: str) -> None:
        """Note what a dimension is for: `heads`, `head_dim` or `hidden`."""
        if labels is not None:
            self.marks.append((labels, kind))

    def own_call(self, node: Node) -> Call | None:
        """The Python-level call of this very operator; None where the node is a part of some larger function."""
        number = self.captured.call_of(node)
        call = None if number is None else self.captured.calls[number]
        return call if call is not None and call.name in _PYTHON_NAMES.get(op_name(node), {op_name(node)}) else None

    def argument(self, node: Node, position: int, name: str) -> Any:
        """Argument of the Python-level call behind `node`, with its provenance; None where it was not given."""
        call = self.own_call(node)
        if call is None:
            return None
        return call.args[position] if len(call.args) > position else call.kwargs.get(name)

    def sizes(self, node: Node, expected: Sequence[int]) -> list[Size]:
        """The provenance of the sizes that a view-like call was given (as many as `expected`), else literals."""
        call = self.own_call(node)
        if call is not None:
            # A tensor's own method has the tensor first; a creation (`torch.zeros`) begins with the sizes.
            given = _integers([call.args, list(call.kwargs.values())])
            for skip in range(len(given) - len(expected) + 1):  # unflatten's dim comes before its sizes
                candidate = given[skip : skip + len(expected)]
                if all(int(g) in (-1, int(e)) for g, e in zip(candidate, expected, strict=True)):
                    return [size_of(g) for g in candidate]
        return [Size(int(e)) for e in expected]

    def constrain(self, labels: Indices | None, size: Size, node: Node) -> None:
        """Whatever is removed from `labels`, the forward's `size` must follow. -1 follows by itself."""
        if size.value != -1 and (labels is not None or size.origins):
            labels = np.empty(0, dtype=np.int64) if labels is None else labels
            self.constraints.append(SizeConstraint(labels, size, self.place(node), self.captured.call_of(node)))

    def origin_labels(self, origin: ShapeOf | AttributeOf) -> Indices | None:
        """The labels of the dimension that a size was read from."""
        if isinstance(origin, AttributeOf) or origin.call < 0 or origin.call not in self._node_of_call:
            return None
        value: Any = self.values[self._node_of_call[origin.call]]
        if value and isinstance(value[0], (list, tuple)):
            value = value[origin.output]
        return _one(value[origin.dim]) if origin.dim < len(value) else None

    def tie_inner(self, labels: Indices, outer: int) -> Indices:
        """Read as [outer, inner]: index j of every row is one group. Returns the inner labels."""
        rows: Indices = labels.reshape(outer, -1)
        self.atoms.unite(rows, rows[:1])
        inner: Indices = rows[0]
        return inner

    def tie_outer(self, labels: Indices, outer: int) -> Indices:
        """Read as [outer, inner]: each row is one group. Returns the outer labels."""
        rows: Indices = labels.reshape(outer, -1)
        self.atoms.unite(rows, rows[:, :1])
        first: Indices = rows[:, 0]
        return first


_PYTHON_NAMES = {
    "split_with_sizes": {"split", "split_with_sizes"},
    "slice": {"__getitem__"},
    "reshape": {"reshape"},
    "view": {"view", "reshape", "unflatten"},
    "expand": {"expand", "broadcast_to"},
}
"""ATen operator -> the Python functions whose arguments are its own, where the names differ."""

Rule = Callable[[Analysis, Node], Value]


def op_name(node: Node) -> str:
    """`conv2d` for `aten.conv2d.default`, without the underscore of in-place variants."""
    packet = getattr(node.target, "overloadpacket", None)
    name = str(packet.__name__) if packet is not None else str(getattr(node.target, "__name__", node.target))
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def output_shapes(node: Node) -> tuple[int, ...]:
    """The captured shape of a node's tensor."""
    return tuple(int(size) for size in node.meta["val"].shape)


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0


def _one(labels: Any) -> Indices | None:
    """The labels of one dimension, where an operator with several outputs would have a list."""
    assert labels is None or isinstance(labels, np.ndarray), "this operator has several outputs"
    return labels


def _integers(value: Any) -> list[int]:
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in _integers(item)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def concatenated(analysis: Analysis, parts: Sequence[tuple[Indices | None, int]], reason: str) -> Indices | None:
    """Labels of dimensions laid end to end; a fixed part next to a labelled one becomes locked atoms."""
    if all(labels is None for labels, _ in parts):
        return None
    pieces = []
    for labels, count in parts:
        if labels is None:
            labels = analysis.atoms.new(count)
            analysis.lock(labels, reason)
        pieces.append(labels)
    return np.concatenate(pieces)
