"""Size constraints: what the forward's own sizes can follow, and the attributes that surgery rewrites for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from nnicompress.graph.analysis import Analysis, SizeConstraint
from nnicompress.graph.capture import Captured
from nnicompress.graph.provenance import AttributeOf, Origin, TrackedInt
from nnicompress.graph.widths import Indices

Losses = dict[tuple[str, str], dict[int, int]]
"""(module, attribute) -> representative -> by how much the attribute falls when that channel group is removed."""


def settle(analysis: Analysis) -> tuple[Losses, set[Origin]]:
    """Lock what the forward's own sizes can't follow; how attributes follow the rest, and sizes used as numbers."""
    explained = {(constraint.call, origin) for constraint in analysis.constraints for origin in constraint.size.origins}
    elsewhere = _used_as_numbers(analysis.captured, explained)
    for origin in elsewhere:
        labels = analysis.origin_labels(origin)
        if labels is not None:
            analysis.lock(labels, "its size is used as a number in the forward")
    while True:
        locked = analysis.atoms.locked()
        losses: Losses = {}
        fixed: dict[int, str] = {}
        products: list[_Product] = []
        first_place: dict[AttributeOf, SizeConstraint] = {}
        united = False
        for constraint in analysis.constraints:
            counts = _free_counts(analysis, constraint.labels, locked)
            attributes = [o for o in constraint.size.origins if isinstance(o, AttributeOf)]
            shapes = [(o, analysis.origin_labels(o)) for o in constraint.size.origins if o not in attributes]
            moving = [(o, found) for o, labels in shapes if (found := _free_counts(analysis, labels, locked))]
            place = constraint.place
            if len(moving) == 1:
                origin, source = moving[0]
                per_unit = Fraction(constraint.size.value, origin.value)
                own_labels, source_labels = constraint.labels, analysis.origin_labels(origin)
                united |= per_unit == 1 and _unite_places(analysis, own_labels, source_labels, locked)
                for root in counts.keys() | source.keys():
                    if counts.get(root, 0) != per_unit * source.get(root, 0):
                        fixed[root] = f"{place} computes a size that does not follow it"
                products.append(_Product(constraint, attributes, {}))
            elif len(attributes) == 1 and not moving:
                own = attributes[0]
                other = first_place.setdefault(own, constraint)
                if other.size.coefficient == constraint.size.coefficient:
                    united |= _unite_places(analysis, other.labels, constraint.labels, locked)
                first = losses.setdefault((own.module, own.attribute), _loss(constraint, own, counts))
                fixed |= _contradictions(constraint, own, counts, first, own in elsewhere)
            elif attributes and not moving:
                products.append(_Product(constraint, attributes, counts))
            elif counts or moving:
                for root in [*counts, *(root for _, found in moving for root in found)]:
                    fixed[root] = f"{place} has the literal size {constraint.size.value}"
        if united:
            continue
        for product in products:
            fixed |= _settle_product(product, losses, elsewhere)
        if not fixed:
            return losses, elsewhere
        for root, reason in fixed.items():
            analysis.atoms.lock(np.array([root]), reason)


def _unite_places(analysis: Analysis, first: Indices | None, second: Indices | None, locked: Mapping[int, str]) -> bool:
    """Two free dimensions that the forward gives one size lose the same indices; whether that is news."""
    if first is None or second is None or len(first) != len(second):
        return False
    a, b = analysis.atoms.find(first), analysis.atoms.find(second)
    if np.array_equal(np.sort(a), np.sort(b)) or any(root in locked for root in (*a.tolist(), *b.tolist())):
        return False
    analysis.atoms.unite(a, b)
    return True


@dataclass(frozen=True, eq=False)
class _Product:
    """A size that several attributes are multiplied for: one of them follows `counts`, the others are constants."""

    constraint: SizeConstraint
    attributes: Sequence[AttributeOf]
    counts: Mapping[int, int]


def _settle_product(product: _Product, losses: Losses, elsewhere: set[Origin]) -> dict[int, str]:
    """Representatives to lock, with the reason, where no one of the attributes can follow."""
    following = [o for o in product.attributes if losses.get((o.module, o.attribute))]
    if not following and not product.counts:
        return {}
    if not following:
        own = product.attributes[0]
        losses[own.module, own.attribute] = _loss(product.constraint, own, product.counts)
        following = [own]
    if len(following) > 1:
        moving = {root for o in following for root in losses[o.module, o.attribute]} | product.counts.keys()
        return dict.fromkeys(moving, f"{product.constraint.place} multiplies two attributes that follow it")
    own = following[0]
    first = losses[own.module, own.attribute]
    return _contradictions(product.constraint, own, product.counts, first, own in elsewhere)


def _loss(constraint: SizeConstraint, own: AttributeOf, counts: Mapping[int, int]) -> dict[int, int]:
    """By how much an attribute falls when one of these sets is removed (none where that is no whole number)."""
    size, unit = constraint.size.value, own.value
    return {root: count * unit // size for root, count in counts.items() if count * unit % size == 0}


def _contradictions(
    constraint: SizeConstraint, own: AttributeOf, counts: Mapping[int, int], first: Mapping[int, int], elsewhere: bool
) -> dict[int, str]:
    """Representatives for which an attribute falls otherwise here than it does at its first place, with the reason."""
    loss = _loss(constraint, own, counts)
    name, fixed = f"{own.module}.{own.attribute}".lstrip("."), {}
    for root in first.keys() | counts.keys():
        if root not in loss or first.get(root) != loss[root]:
            fixed[root] = f"{constraint.place}: `{name}` stands for other sizes too"
        elif elsewhere:
            fixed[root] = f"{constraint.place}: `{name}` is used elsewhere too"
    return fixed


def _free_counts(analysis: Analysis, labels: Indices | None, locked: dict[int, str]) -> dict[int, int]:
    if labels is None or not labels.size:
        return {}
    roots, counts = np.unique(analysis.atoms.find(labels), return_counts=True)
    return {r: c for r, c in zip(roots.tolist(), counts.tolist(), strict=True) if r not in locked}


def _used_as_numbers(captured: Captured, explained: set[Any]) -> set[Origin]:
    """Sizes used in arithmetic, or given to a call whose rule knows nothing of them: another size, another result."""
    found = set(captured.escaped)
    for number, call in enumerate(captured.calls):
        for leaf in torch.utils._pytree.tree_leaves((call.args, call.kwargs)):
            if isinstance(leaf, TrackedInt):
                found |= {origin for origin in leaf.size.origins if (number, origin) not in explained}
    return found
