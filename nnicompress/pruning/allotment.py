"""From scores to what each width and tensor loses: units with ratios and bounds, in pools that share a budget."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nnicompress.errors import ConfigError
from nnicompress.graph.widths import UNITS, Indices, Width
from nnicompress.pruning.allocation import Allotment, Unit, allocate, normalize, rounding_step
from nnicompress.pruning.equal_drop import at_equal_drop
from nnicompress.pruning.granularity import lowest_in_pools
from nnicompress.pruning.plan import Plan, TensorTarget, WidthTarget
from nnicompress.pruning.result import Removed
from nnicompress.pruning.schedule import Growth
from nnicompress.pruning.scores import Scores
from nnicompress.pruning.settings import AllocationSettings, PrunerSettings, TensorSettings

MOST_OF_A_WIDTH = 0.95
"""The default `max_sparse_ratio` of channels: competing widths may not empty a layer."""


@dataclass(frozen=True)
class Ask:
    """What one removal asks for: the settings' ratios as far as they have grown, or `scale` of what is possible."""

    grow: Growth
    scale: float | None = None
    """Where a budget is searched for: ratios stand in proportion to the settings', the largest of them being this."""
    largest: float = 1.0
    """The largest ratio of the settings."""

    def ratio(self, settings: TensorSettings, scores: Scores) -> float:
        """The share that a width or tensor with these settings and scores is to lose."""
        if self.scale is not None:
            return (
                self.scale * (self.largest if settings.sparse_ratio is None else settings.sparse_ratio) / self.largest
            )
        if settings.sparse_threshold is not None:
            return self.grow(float((scores < settings.sparse_threshold).mean()))
        assert settings.sparse_ratio is not None
        return self.grow(settings.sparse_ratio)

    def of_unprunable(self, ratio: float) -> float:
        """What was asked of channels that must stay."""
        return self.grow(ratio) if self.scale is None else 0.0


@dataclass(frozen=True, eq=False)
class Allotments:
    """What each width and tensor loses, by its name, and the share that it was asked to lose."""

    of: dict[str, Allotment]
    ratios: dict[str, float]

    def __or__(self, other: Allotments) -> Allotments:
        """Those of two plans."""
        return Allotments(self.of | other.of, self.ratios | other.ratios)

    def taking(self, names: Iterable[str], other: Allotments) -> Allotments:
        """These, but those of `names` as `other` has them."""
        return Allotments(self.of | {name: other.of[name] for name in names}, self.ratios)

    def removed(self, plan: Plan) -> Removed:
        """The indices alone."""
        widths = {target.width.name: self.of[target.width.name].removed for target in plan.widths}
        return Removed(widths, {target.tensor: self.of[target.tensor].removed for target in plan.tensors})


class Allotter:
    """Allots by `scores`, with the settings of an allocation.

    What was `removed` before stays so; `comparable` scores compete as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        settings: AllocationSettings,
        scores: Mapping[str, Scores],
        removed: Removed,
        *,
        comparable: bool,
    ) -> None:
        self._model, self._plan, self._settings = model, plan, settings
        self._scores, self._removed = scores, removed
        self._normalize = settings.normalize or ("none" if comparable else None)
        self._dependent = _dependent(plan.widths)

    def __call__(self, ask: Ask) -> Allotments:
        """What is removed, with what was removed before."""
        allotments: dict[str, Allotment] = {}
        ratios: dict[str, float] = {}
        pools: dict[Hashable, list[tuple[Unit, tuple[str, ...]]]] = defaultdict(list)
        for members in self._dependent:
            unit = self._width_unit(members, ask)
            names = tuple(member.width.name for member in members)
            ratios |= dict.fromkeys(names, unit.ratio)
            pools["channels", self._pool(members[0])].append((unit, names))
        for target in self._plan.tensors:
            own, alive = _without(self._scores[target.tensor], self._removed.tensors.get(target.tensor, _NONE))
            ratio = ratios[target.tensor] = ask.ratio(target.settings, own)
            if target.pool is not None:
                shape = self._model.get_parameter(target.tensor).shape
                gone = lowest_in_pools(own, shape, target.pool, ratio)
                allotments[target.tensor] = Allotment(ratio * len(own), gone)
                continue
            unit = self._tensor_unit(target, own, alive, ratio, ask.grow)
            pools["weights", self._pool(target)].append((unit, (target.tensor,)))
        for units in pools.values():
            each, names_of = [unit for unit, _ in units], [names for _, names in units]
            if self._settings.drops is not None:
                each = at_equal_drop(each, names_of, self._settings.drops)
            allotted = allocate(each, compete=self._settings.competes)
            pairs = zip(each, names_of, strict=True)
            allotments |= {member: allotted[unit.name] for unit, members in pairs for member in members}
        return Allotments(allotments, ratios)

    def changes(self, fewer: Allotments, more: Allotments) -> list[tuple[str, ...]]:
        """Names of the widths of which `more` takes other groups than `fewer`, the least important groups first.

        Widths that depend on each other stand together.
        """
        found: list[tuple[float, tuple[str, ...]]] = []
        for members in self._dependent:
            names = tuple(member.width.name for member in members)
            groups = np.setxor1d(fewer.of[names[0]].removed, more.of[names[0]].removed)
            if len(groups):
                found.append((float(self._competing(members)[groups].mean()), names))
        return [names for _, names in sorted(found)]

    def _alive(self, members: Sequence[WidthTarget]) -> list[tuple[Scores, NDArray[np.bool_]]]:
        """Scores of each of dependent widths, and which groups are still there."""
        gone = self._removed.widths.get(members[0].width.name, _NONE)
        return [_without(self._scores[member.width.name], gone) for member in members]

    def _competing(self, members: Sequence[WidthTarget]) -> Scores:
        """What the groups of dependent widths compete with, `[groups]`."""
        each = [normalize(own, self._normalize or "mean", alive) for own, alive in self._alive(members)]
        total: Scores = np.sum(each, axis=0)
        return total

    def _tensor_unit(
        self, target: TensorTarget, own: Scores, alive: NDArray[np.bool_], ratio: float, grow: Growth
    ) -> Unit:
        least, most = _bounds(target.settings, len(own), grow, int((~alive).sum()), 1.0)
        scores = normalize(own, self._normalize or "none", alive)
        return Unit(target.tensor, scores, ratio, cost=math.prod(target.block), least=least, most=most)

    def _width_unit(self, members: Sequence[WidthTarget], ask: Ask) -> Unit:
        first = members[0]
        ratio = ask.ratio(first.settings, np.mean([own for own, _ in self._alive(members)], axis=0))
        gone = self._removed.widths.get(first.width.name, _NONE)
        most_of_all = max(MOST_OF_A_WIDTH, first.settings.sparse_ratio or 0.0)
        least, most = _bounds(first.settings, first.width.size, ask.grow, len(gone), most_of_all)
        round_to = self._settings.round_to
        return Unit(
            first.width.name,
            self._competing(members),
            ratio,
            cost=sum(member.cost for member in members),
            step=max(rounding_step(round_to, m.width.size, m.channels_per_group) for m in members),
            least=least,
            most=most,
        )

    def _pool(self, target: WidthTarget | TensorTarget) -> Hashable:
        group = target.settings.global_group_id
        pool: Hashable = ("target", target.target) if group is None else ("group", group)
        if self._settings.name != "isomorphic":
            return pool
        if isinstance(target, WidthTarget):
            return pool, structure(self._model, target.width)
        return pool, type(self._model.get_submodule(target.tensor.rpartition(".")[0])).__name__


def require_effect(model: nn.Module, settings: PrunerSettings, plan: Plan) -> None:
    """Raise a ConfigError where a target would lose nothing, whatever the scores: nobody means that by a ratio.

    Amounts that depend on what is measured (thresholds, a budget, drops) pass.
    """
    if not plan.widths and not plan.tensors and plan.unpruned:
        reasons = "; ".join(dict.fromkeys(f"{left.module}: {left.reason}" for left in plan.unpruned[:3]))
        raise ConfigError(f"nothing of what is selected can be pruned: {reasons}", key="targets")
    if settings.target is not None or settings.allocation.drops is not None:
        return
    widths = replace(plan, widths=tuple(t for t in plan.widths if t.settings.sparse_threshold is None), tensors=())
    scores = {target.width.name: np.ones(target.width.size) for target in widths.widths}
    allotter = Allotter(model, widths, settings.allocation, scores, Removed({}, {}), comparable=True)
    lost = allotter(Ask(lambda ratio: ratio)).removed(widths).widths
    for name in settings.targets:
        own = [target for target in widths.widths if target.target == name and target.settings.sparse_ratio]
        if own and not any(len(lost[target.width.name]) for target in own):
            first = own[0]
            step = rounding_step(settings.allocation.round_to, first.width.size, first.channels_per_group)
            least = first.width.size - step * ((first.width.size - 1) // step)
            has = f"{first.width.size} {UNITS.get(first.width.kind, 'channels')}"
            raise ConfigError(
                f"{first.settings.sparse_ratio:g} is too little to remove anything: {first.width.name} has {has}, and "
                f"loses at least {least} or none",
                key=f"targets.{name}.sparse_ratio",
            )


def structure(model: nn.Module, width: Width) -> Hashable:
    """What a width is made of: how many slots of each role, in modules of which class (Fang et al. 2024)."""
    owners = [model.get_submodule(slot.tensor.rpartition(".")[0]) for slot in width.slots]
    kinds = Counter(
        (type(owner).__name__, slot.tensor.rpartition(".")[2], slot.dim, slot.role)
        for owner, slot in zip(owners, width.slots, strict=True)
    )
    return frozenset(kinds.items())


_NONE: Indices = np.empty(0, dtype=np.int64)


def _dependent(widths: Sequence[WidthTarget]) -> list[tuple[WidthTarget, ...]]:
    """Widths that lose the same indices: those of one `dependency_group_id` together, the others alone."""
    together: dict[Hashable, list[WidthTarget]] = defaultdict(list)
    for target in widths:
        group = target.settings.dependency_group_id
        together[("width", target.width.name) if group is None else ("group", group)].append(target)
    for members in together.values():
        first = members[0]
        for other in members[1:]:
            key = f"targets.{other.target}.dependency_group_id"
            if other.width.size != first.width.size:
                raise ConfigError(
                    f"{other.width.name} has {other.width.size} channel groups and {first.width.name} "
                    f"{first.width.size}; widths that depend on each other must be equal",
                    key=key,
                )
            if other.settings.sparse_ratio != first.settings.sparse_ratio:
                raise ConfigError(
                    f"targets.{first.target} has the same dependency_group_id and another sparse_ratio", key=key
                )
    return [tuple(members) for members in together.values()]


def _without(scores: Scores, gone: Indices) -> tuple[Scores, NDArray[np.bool_]]:
    """Scores in which what is removed already comes first, and which groups are alive."""
    alive = np.ones(len(scores), dtype=np.bool_)
    alive[gone] = False
    return np.where(alive, scores, -np.inf), alive


def _bounds(settings: TensorSettings, size: int, grow: Growth, gone: int, default_most: float) -> tuple[int, int]:
    """The least and the most groups to remove; the lower bound grows with the schedule, removed groups stay removed."""
    low = settings.min_sparse_ratio or 0.0
    high = default_most if settings.max_sparse_ratio is None else settings.max_sparse_ratio
    most = max(math.floor(high * size + 1e-9), gone)
    return min(max(math.ceil(grow(low) * size - 1e-9), gone), most), most
