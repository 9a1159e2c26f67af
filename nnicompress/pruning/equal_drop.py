"""Ratios from measured sensitivity: every layer gives as much as costs the same drop of the metric.

Each layer's drops, measured at a few ratios (`nnicompress sensitivity`), are joined by straight lines from (0, 0). The
budget is met at one drop t: each layer loses the largest ratio at which it alone costs no more than t. A layer that
costs little loses much, and no layer is asked for more than was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nnicompress.errors import ConfigError, did_you_mean
from nnicompress.pruning.allocation import Unit

Drops = Mapping[str, Mapping[float, float]]
"""Layer -> ratio -> by how much the metric is worse."""
KEY = "allocation.drops"
_SLOPE = 1e-6
"""Of the largest drop, for a ratio of 1: where several layers cost nothing, they share what goes."""
_HALVINGS = 60


def at_equal_drop(units: Sequence[Unit], members: Sequence[Sequence[str]], drops: Drops) -> list[Unit]:
    """`units` with the ratios that meet their common budget at an equal drop.

    `members[i]` names the layers that unit i stands for; their drops add up.

    Raises:
        ConfigError: a layer was not measured, or the budget is beyond what was measured.
    """
    curves = _Curves(units, members, drops)
    budget = sum(unit.ratio * unit.size * unit.cost for unit in units)
    low, high = 0.0, curves.highest
    most = curves.removed(high)
    if most < budget * (1 - 1e-9):
        largest = max(ratio for names in members for name in names for ratio in drops[name])
        raise ConfigError(
            f"the ratios ask for {budget:.0f} channels and at most {most:.0f} go at the largest measured ratio, "
            f"{largest:g}; measure larger ones with stages.sensitivity.ratios",
            key=KEY,
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if curves.removed(middle) < budget:
            low = middle
        else:
            high = middle
    return [replace(unit, ratio=float(ratio)) for unit, ratio in zip(units, curves.ratios(high), strict=True)]


class _Curves:
    """The drop of each unit as a strictly increasing function of its ratio."""

    def __init__(self, units: Sequence[Unit], members: Sequence[Sequence[str]], drops: Drops) -> None:
        raw = [_sum_of(names, drops) for names in members]
        slope = _SLOPE * (max((max(costs) for _, costs in raw), default=0.0) or 1.0)
        self.units = units
        # More channels never cost less: a drop below that of a smaller ratio is noise, and so is a gain.
        self.lines = [(grid, np.maximum.accumulate(np.maximum(costs, 0)) + slope * grid) for grid, costs in raw]
        self.highest = max((float(costs[-1]) for _, costs in self.lines), default=0.0)

    def ratios(self, drop: float) -> list[float]:
        """What each unit loses at this drop, within its bounds."""
        found = []
        for unit, (grid, costs) in zip(self.units, self.lines, strict=True):
            ratio = float(np.interp(drop, costs, grid))
            found.append(min(max(ratio, unit.least / unit.size), unit.limit / unit.size))
        return found

    def removed(self, drop: float) -> float:
        """What all units lose together, in the budget's unit."""
        return sum(r * unit.size * unit.cost for r, unit in zip(self.ratios(drop), self.units, strict=True))


def _sum_of(names: Sequence[str], drops: Drops) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ratios, from 0 on, at which all of `names` were measured, and the sum of their drops there."""
    for name in names:
        if not drops.get(name):
            known = did_you_mean(name, drops) or "; analyse this model, with the same groups of layers"
            raise ConfigError(f"no drop of {name!r} was measured{known}", key=KEY)
    grid = sorted(set.intersection(*(set(drops[name]) for name in names)))
    return np.array([0.0, *grid]), np.array([0.0, *(sum(drops[name][ratio] for name in names) for ratio in grid)])
