"""Find a model's channel groups by following dimensions through its captured graph.

    placeholders get labels -> each operator's rule carries and unites them -> size constraints are settled
    -> sets that live in the same tensors become one width

Linear in the number of operators: every node is visited once, and locks only grow while constraints are settled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnicompress.graph import rules_attention, rules_join, rules_shape  # noqa: F401  (they register their rules)
from nnicompress.graph.analysis import Analysis, Value, op_name
from nnicompress.graph.capture import Captured
from nnicompress.graph.norms import NormPlace, find_norms, numbered
from nnicompress.graph.provenance import AttributeOf
from nnicompress.graph.rules import RULES, is_pointwise, pointwise
from nnicompress.graph.settle import Losses, settle
from nnicompress.graph.widths import AttributeTie, ChannelGroups, Indices, ModuleOutput, Slot, Unprunable, Width
from nnicompress.graph.zeros import lock_contractions


def find_channel_groups(captured: Captured, *, inside_heads: bool = False, hidden: bool = False) -> ChannelGroups:
    """All widths of the captured model, with the reasons for what can't be pruned.

    Attention can lose whole heads, or with `inside_heads` the same dimensions of every head. With `hidden` widths that
    norms take their statistics over are prunable, too: while they are only masked, those norms must be restricted.
    """
    analysis = Analysis(captured, captured.shapes, inside_heads=inside_heads, hidden=hidden)
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            analysis.placeholder(node)
        elif node.op == "call_function":
            analysis.finish(node, _apply_rule(analysis, node))
        elif node.op == "output":
            for leaf in node.all_input_nodes:
                analysis.lock_all(analysis.values[leaf], "it is an output of the model")
    lock_contractions(analysis)
    norms = find_norms(analysis)
    losses, elsewhere = settle(analysis)
    read = frozenset((o.module, o.attribute) for o in elsewhere if isinstance(o, AttributeOf))
    return _collect(analysis, losses, read, norms)


_OPAQUE = frozenset({"multi_head_attention_forward"})
"""Python functions that check sizes on the inside, where nothing is recorded: what enters them must stay."""


def _apply_rule(analysis: Analysis, node: torch.fx.Node) -> Value:
    name = op_name(node)
    call = analysis.captured.call_of(node)
    function = "" if call is None else analysis.captured.calls[call].name
    if function in _OPAQUE:
        for operand in node.all_input_nodes:
            analysis.lock_all(analysis.values[operand], f"{function} checks its sizes")
    if name in RULES:
        return RULES[name](analysis, node)
    if is_pointwise(node):
        return pointwise(analysis, node)
    if node.meta.get("val") is None:  # it only asserts something of its operands (torch.export adds such nodes)
        return []
    for operand in node.all_input_nodes:
        analysis.lock_all(analysis.values[operand], f"{analysis.place(node)} is an operator without a rule")
    fixed: Value = _fixed_value(node.meta.get("val"))
    return fixed


def _fixed_value(value: Any) -> Any:
    """No labels, for every tensor of an output."""
    if isinstance(value, torch.Tensor):
        return [None] * value.dim()
    return [_fixed_value(part) for part in value] if isinstance(value, (tuple, list)) else []


def _collect(
    analysis: Analysis, losses: Losses, read: frozenset[tuple[str, str]], norms: Mapping[str, NormPlace]
) -> ChannelGroups:
    """Sets that live in the same tensors, equally often, form one width."""
    roots_of = {key: analysis.atoms.find(atoms) for key, atoms in analysis.slots.items()}
    locked = analysis.atoms.locked()
    free = np.zeros(len(analysis.atoms), dtype=bool)
    for key, roots in roots_of.items():
        free[roots] |= analysis.roles.get(key) == "output"
    produced = free.copy()
    free[np.fromiter(locked, dtype=np.int64, count=len(locked))] = False
    family_of = _families(roots_of, losses, free)
    widths = [
        (replace(w, kind=_kind(analysis, w, roots)), roots) for w, roots in _widths(analysis, roots_of, family_of)
    ]
    numbers = np.full(len(analysis.atoms), -1, dtype=np.int64)
    members = np.concatenate([roots for _, roots in widths]) if widths else np.empty(0, dtype=np.int64)
    numbers[members] = np.arange(len(members))

    def reason(root: int) -> str:
        if root in locked:
            return locked[root]
        return "all its indices are tied together" if produced[root] else "no layer with weights produces it"

    ties = tuple(
        AttributeTie(module, attribute, tied)
        for (module, attribute), loss in losses.items()
        if (tied := {w.name: np.array([loss[r] for r in roots.tolist()]) for w, roots in widths if roots[0] in loss})
    )
    return ChannelGroups(
        tuple(width for width, _ in widths),
        _unprunable(analysis, roots_of, numbers, reason),
        ties,
        _module_outputs(analysis, numbers),
        read,
        frozenset(
            (o.module, o.attribute) for c in analysis.constraints for o in c.size.origins if isinstance(o, AttributeOf)
        ),
        numbered(analysis, norms, numbers),
        analysis.captured.outputs,
    )


def _kind(analysis: Analysis, width: Width, roots: Indices) -> str:
    """What a width is for, by what its indices went through."""
    for kind in ("heads", "head_dim", "hidden"):
        for labels, own in analysis.marks:
            if own == kind and np.isin(analysis.atoms.find(labels), roots).any():
                return kind
    shapes = [analysis.shapes[slot.tensor] for slot in (*width.producers, *width.consumers)]
    return "ffn" if all(len(shape) == 2 for shape in shapes) else "channels"


def _families(roots_of: dict[tuple[str, int], Indices], losses: Losses, free: NDArray[np.bool_]) -> Indices:
    """For each representative the number of its family, or -1: partition refinement by (tensor, how often)."""
    family = np.where(free, 0, -1)
    highest = 1
    features = [np.unique(roots[free[roots]], return_counts=True) for roots in roots_of.values()]
    for loss in losses.values():
        tied = np.fromiter(loss, dtype=np.int64, count=len(loss))
        features.append((tied[free[tied]], np.array([loss[r] for r in tied[free[tied]].tolist()], dtype=np.int64)))
    for roots, counts in features:
        if roots.size:
            _, refined = np.unique(family[roots] * (counts.max() + 1) + counts, return_inverse=True)
            family[roots] = highest + refined
            highest += int(refined.max()) + 1
    sizes = np.bincount(family[family >= 0], minlength=highest)
    # A family of one can only go as a whole, and then nothing would be left of the layer.
    return np.where((family >= 0) & (sizes[family] > 1), family, -1)


def _widths(
    analysis: Analysis, roots_of: dict[tuple[str, int], Indices], family_of: Indices
) -> list[tuple[Width, Indices]]:
    """Each family as a width, with its representatives in the order of its channel groups."""
    members: dict[int, Indices] = {}
    slots: dict[int, list[Slot]] = defaultdict(list)
    rank_of = np.full(len(analysis.atoms), -1, dtype=np.int64)
    # Producers first: their order is the order of a width's channel groups.
    for key in sorted(roots_of, key=lambda key: analysis.roles.get(key) != "output"):
        roots = roots_of[key]
        families = family_of[roots]
        for family in np.unique(families[families >= 0]).tolist():
            positions = np.flatnonzero(families == family)
            own = roots[positions]
            if family not in members:
                found, first = np.unique(own, return_index=True)
                members[family] = found[np.argsort(first)]
                rank_of[members[family]] = np.arange(len(found))
            order = np.argsort(rank_of[own], kind="stable")
            indices = positions[order].reshape(len(members[family]), -1)
            slots[family].append(Slot(*key, indices, analysis.roles.get(key, "inner")))
    times: dict[str, int] = {}
    result = []
    for family, own_slots in slots.items():
        tensor = own_slots[0].tensor
        module = tensor.rpartition(".")[0] or tensor
        times[module] = times.get(module, 0) + 1
        name = module if times[module] == 1 else f"{module}#{times[module]}"
        result.append((Width(name, len(members[family]), tuple(own_slots)), members[family]))
    return result


def _unprunable(
    analysis: Analysis, roots_of: dict[tuple[str, int], Indices], numbers: Indices, reason: Callable[[int], str]
) -> tuple[Unprunable, ...]:
    """The indices of each tensor's dimensions that belong to no width, counted by reason."""
    result = []
    for (tensor, dim), roots in roots_of.items():
        reasons: dict[str, int] = {}
        for root, count in zip(
            *(a.tolist() for a in np.unique(roots[numbers[roots] < 0], return_counts=True)), strict=True
        ):
            reasons[reason(root)] = reasons.get(reason(root), 0) + count
        role = analysis.roles.get((tensor, dim), "inner")
        result += [Unprunable(tensor, dim, count, why, role) for why, count in reasons.items()]
    return tuple(result)


def _module_outputs(analysis: Analysis, numbers: Indices) -> tuple[ModuleOutput, ...]:
    """The channel groups in what each call of a module returned, which its last node made."""
    nodes = [node for node in analysis.captured.graph.nodes if node.op == "call_function"]
    calls: dict[str, int] = {}
    result = []
    for node, following in zip(nodes, [*nodes[1:], None], strict=True):
        module = analysis.captured.module_of(node)
        if not module or (following is not None and analysis.captured.module_of(following) == module):
            continue
        call = calls[module] = calls.get(module, -1) + 1
        if isinstance(node.meta.get("val"), torch.Tensor):
            labels = analysis.labels(node)
            dims = tuple(None if own is None else numbers[analysis.atoms.find(own)] for own in labels)
            result.append(ModuleOutput(module, call, dims))
    return tuple(result)


def prunable_fraction(model: nn.Module, groups: ChannelGroups) -> float:
    """The share of the layers' weights (elements, embeddings aside) that lie in at least one width."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = {name: p.shape for name, p in model.named_parameters() if p.dim() > 1 and id(p) not in tables}
    slots = [slot for width in groups.widths for slot in width.slots]
    entries: list[Slot | Unprunable] = [*slots, *groups.unprunable]
    layers = {entry.tensor for entry in entries if entry.role != "inner"} & weights.keys()
    inside = {name: torch.zeros(weights[name], dtype=torch.bool) for name in layers}
    for slot in slots:
        if slot.tensor in inside:
            inside[slot.tensor].index_fill_(slot.dim, torch.from_numpy(slot.indices.ravel()), True)
    return sum(int(mask.sum()) for mask in inside.values()) / sum(mask.numel() for mask in inside.values())
