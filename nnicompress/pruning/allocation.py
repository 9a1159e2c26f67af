"""How much each unit (a width, or a tensor's weights) loses: a budget met, bounds kept, widths rounded.

Uniform: every unit loses its own share. Global: the groups of all units of a pool compete on their normalised scores.
Either way the counts are then rounded to the nearest allowed ones, and the budget is rebalanced: units are moved by one
step, the least harmful first, while that brings the total nearer to what was asked. Rounding each unit on its own would
turn widths of 16, 32 and 64 at 40 % into 29 % where it rounds up to multiples of 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nnicompress.graph.widths import Indices


@dataclass(frozen=True, eq=False)
class Unit:
    """What allocation sees of one width or tensor.

    `scores` has one entry a group, larger is kept longer. Kept counts are multiples of `step`, or all. `least` and
    `most` bound how many groups are removed. `cost` is what one group counts in the budget.
    """

    name: str
    scores: NDArray[np.float64]
    ratio: float
    cost: float = 1
    step: int = 1
    least: int = 0
    most: int | None = None

    @property
    def size(self) -> int:
        """The number of groups."""
        return len(self.scores)

    @property
    def limit(self) -> int:
        """At most so many groups are removed; one always stays."""
        return self.size - 1 if self.most is None else min(self.most, self.size - 1)

    def at_most(self, count: float) -> int | None:
        """The largest allowed number of removed groups that is not above `count`, or None."""
        count = min(count, self.limit)
        removed = self.size - self.step * math.ceil((self.size - count) / self.step)
        if removed >= max(self.least, 0):
            return removed
        return 0 if self.least <= 0 <= count else None

    def at_least(self, count: float) -> int | None:
        """The smallest allowed number of removed groups that is not below `count`, or None."""
        count = max(count, self.least)
        if count <= 0:
            return 0
        removed = self.size - self.step * math.floor((self.size - count) / self.step)
        return removed if removed <= self.limit else None


@dataclass(frozen=True, eq=False)
class Allotment:
    """What one unit loses: the asked count of groups before rounding (fractional) and the indices to remove, sorted."""

    asked: float
    removed: Indices
    note: str = ""


def rounding_step(round_to: int | str, size: int, width_of_group: int) -> int:
    """The step of kept counts, in groups of `width_of_group` channels each.

    `auto` is the greatest power of two up to an eighth of the width's channels, at most 16; as groups may be wider than
    that, it is never more than an eighth of the groups either.
    """
    channels = size * width_of_group
    if round_to == "auto":
        multiple = 1 << (min(16, max(1, channels // 8)).bit_length() - 1)
        return min(multiple // math.gcd(multiple, width_of_group), max(1, size // 8))
    assert isinstance(round_to, int)
    return round_to // math.gcd(round_to, width_of_group)


def normalize(scores: NDArray[np.float64], mode: str, alive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scores divided by the mean or the maximum of the groups still alive, so that widths can compete."""
    if mode == "none" or not alive.any():
        return scores
    divisor = float(scores[alive].mean() if mode == "mean" else scores[alive].max())
    return scores / divisor if divisor > 0 else scores


def allocate(units: Iterable[Unit], *, compete: bool) -> dict[str, Allotment]:
    """What each unit of one pool loses; `compete` for global allocation."""
    usable = [_with_allowed_counts(unit) for unit in units]
    if not usable:
        return {}
    orders = {unit.name: np.argsort(unit.scores, kind="stable") for unit in usable}
    ranked = [unit.scores[orders[unit.name]] for unit in usable]
    asked = _compete(usable, ranked) if compete else [max(unit.ratio * unit.size, unit.least) for unit in usable]
    counts = (_round_competing if compete else _round_uniform)(usable, ranked, asked)
    return {
        unit.name: Allotment(ask, np.sort(orders[unit.name][:count]), _note(unit, ask, count))
        for unit, ask, count in zip(usable, asked, counts, strict=True)
    }


def _with_allowed_counts(unit: Unit) -> Unit:
    """The unit, its rounding given up where no multiple lies within its bounds: bounds win over rounding."""
    least = min(unit.least, unit.limit)
    unit = replace(unit, least=least)
    return unit if unit.at_least(least) is not None else replace(unit, step=1)


def _compete(units: Sequence[Unit], ranked: Sequence[NDArray[np.float64]]) -> list[float]:
    """The count each unit loses when the lowest scores of the whole pool go first, before rounding."""
    budget = sum(unit.ratio * unit.size * unit.cost for unit in units) - sum(unit.least * unit.cost for unit in units)
    scores = np.concatenate([own[unit.least : unit.limit] for unit, own in zip(units, ranked, strict=True)])
    owner = np.repeat(np.arange(len(units)), [unit.limit - unit.least for unit in units])
    order = np.argsort(scores, kind="stable")
    spent = np.cumsum(np.array([unit.cost for unit in units], dtype=np.float64)[owner[order]])
    taken = int(np.searchsorted(spent, budget, side="right"))
    if taken < len(spent):  # one more where that comes nearer
        before = spent[taken - 1] if taken else 0.0
        taken += bool(spent[taken] - budget < budget - before)
    chosen = np.bincount(owner[order[:taken]], minlength=len(units))
    return [float(unit.least + count) for unit, count in zip(units, chosen, strict=True)]


def _nearest(unit: Unit, ask: float) -> int:
    below, above = unit.at_most(ask), unit.at_least(ask)
    if below is None or above is None:
        found = below if below is not None else above
        assert found is not None, unit
        return found
    return below if ask - below <= above - ask else above


def _round_uniform(units: Sequence[Unit], ranked: Sequence[NDArray[np.float64]], asked: Sequence[float]) -> list[int]:
    """Each unit to an allowed count next to its own ask, above or below it, so that the total is near."""
    asks = [min(max(ask, unit.least), unit.limit) for unit, ask in zip(units, asked, strict=True)]
    counts = [_nearest(unit, ask) for unit, ask in zip(units, asks, strict=True)]

    def moves(i: int, count: int, more: bool) -> int | None:
        other = units[i].at_least(asks[i]) if more else units[i].at_most(asks[i])
        return other if other is not None and (other > count if more else other < count) else None

    def harm(i: int, count: int, other: int) -> tuple[float, float]:
        displacement = (abs(other - asks[i]) - abs(count - asks[i])) / units[i].size
        return (round(displacement, 9), _score_harm(ranked[i], count, other))

    return _rebalance(units, counts, sum(a * u.cost for a, u in zip(asks, units, strict=True)), moves, harm)


def _round_competing(units: Sequence[Unit], ranked: Sequence[NDArray[np.float64]], asked: Sequence[float]) -> list[int]:
    """Each unit to the allowed count next to its ask; then the moves that cost least importance, to meet the total."""
    counts = [_nearest(unit, ask) for unit, ask in zip(units, asked, strict=True)]
    total = sum(unit.ratio * unit.size * unit.cost for unit in units)

    def moves(i: int, count: int, more: bool) -> int | None:
        return units[i].at_least(count + 1) if more else units[i].at_most(count - 1)

    def harm(i: int, count: int, other: int) -> tuple[float, float]:
        return (_score_harm(ranked[i], count, other), 0.0)

    return _rebalance(units, counts, total, moves, harm)


def _score_harm(ranked: NDArray[np.float64], count: int, other: int) -> float:
    """The mean score lost by removing more groups; minus the mean score won by removing fewer."""
    return float(ranked[count:other].mean()) if other > count else -float(ranked[other:count].mean())


def _rebalance(
    units: Sequence[Unit],
    counts: list[int],
    total: float,
    moves: Callable[[int, int, bool], int | None],
    harm: Callable[[int, int, int], tuple[float, float]],
) -> list[int]:
    """Move units by one step, the least harmful first, while the total cost comes nearer to `total`.

    Ends because each move strictly lowers the distance to `total` by a sum of finitely many costs.
    """
    missing = total - sum(unit.cost * count for unit, count in zip(units, counts, strict=True))
    while True:
        options: list[tuple[tuple[float, float], int, int]] = []
        for i, unit in enumerate(units):
            other = moves(i, counts[i], missing > 0)
            if other is not None and abs(missing - unit.cost * (other - counts[i])) < abs(missing) - 1e-9:
                options.append((harm(i, counts[i], other), i, other))
        if not options:
            return counts
        _, i, other = min(options)
        missing -= units[i].cost * (other - counts[i])
        counts[i] = other


def _note(unit: Unit, asked: float, count: int) -> str:
    """Why the unit lost less than it was asked to, in words; empty where it lost as much."""
    if count >= asked or asked - count < 1 and unit.step == 1:
        return ""
    reasons = [f"at most {unit.limit} of {unit.size} groups may go"] if asked > unit.limit else []
    if unit.step > 1 and count < min(asked, unit.limit):
        reasons.append(f"kept groups are rounded to multiples of {unit.step}")
    return ", ".join(reasons) or "the budget of all layers together is reached"
