"""What a pruner did: the removal, its masks, and a table of what was asked and what was got, with the reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from nnicompress.graph.widths import ChannelGroups, Indices
from nnicompress.pruning.allocation import Allotment
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.plan import Plan
from nnicompress.pruning.schedule import Growth

NEAR = 0.01
"""A removed share this near below the asked one is as asked: widths have steps."""


@dataclass(frozen=True, eq=False)
class Removed:
    """Indices removed so far: channel groups by width name, blocks (row-major) by parameter name."""

    widths: dict[str, Indices]
    tensors: dict[str, Indices]


@dataclass(frozen=True, eq=False)
class Position:
    """Where a pruner is in its schedule: after removal `number` (from 1; 0: before the first)."""

    number: int
    removed: Removed

    def state_dict(self) -> dict[str, Any]:
        """As tensors, numbers and texts."""
        return {
            "number": self.number,
            "widths": {name: torch.from_numpy(indices) for name, indices in self.removed.widths.items()},
            "tensors": {name: torch.from_numpy(indices) for name, indices in self.removed.tensors.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """What `state_dict` returned."""
        widths, tensors = ({n: i.numpy() for n, i in state[kind].items()} for kind in ("widths", "tensors"))
        return cls(state["number"], Removed(widths, tensors))


@dataclass(frozen=True)
class PrunedRow:
    """One width or tensor: `size`, `asked` and `removed` count its channels (or weights), once for all its modules.

    With global allocation `asked` is what the width lost in the competition, before rounding.
    """

    name: str
    target: str
    modules: tuple[str, ...]
    unit: str
    """`channels`, `weights`, or what the groups of its kind are called (`heads`)."""
    size: int
    asked: int
    removed: int
    note: str = ""
    """Why less was removed than asked; else empty."""

    @property
    def kept(self) -> int:
        """What remains."""
        return self.size - self.removed


@dataclass(frozen=True)
class Total:
    """Sums over all selected modules, prunable or not; of channels, those that several share count for each."""

    size: float
    asked: float
    removed: float

    @property
    def asked_ratio(self) -> float:
        """The asked share of the unpruned model."""
        return self.asked / self.size

    @property
    def removed_ratio(self) -> float:
        """The removed share of the unpruned model."""
        return self.removed / self.size


@dataclass(frozen=True, eq=False)
class PruningResult:
    """`removal` (width name -> sorted indices of channel groups) is what `shrink` takes, `masks` hold it and more.

    `removal` has only widths that lose something; `groups` is None where no channels were to be pruned.
    """

    removal: dict[str, Indices]
    masks: Masks
    rows: tuple[PrunedRow, ...]
    unprunable: tuple[str, ...]
    """Selected modules that could not be pruned as a whole or in part, one line each, with the reason."""
    totals: Mapping[str, Total]
    """By unit: `channels`, `weights`, `heads` ..."""
    groups: ChannelGroups | None = None

    @property
    def asked(self) -> float:
        """The sum of what was asked for, over the totals."""
        return sum(total.asked for total in self.totals.values())

    @property
    def removed(self) -> float:
        """The sum of everything removed, over the totals."""
        return sum(total.removed for total in self.totals.values())

    @property
    def masks_only(self) -> bool:
        """Whether there is nothing for `shrink` to remove: masks alone bring no speed."""
        return not self.removal

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why less was removed than asked, each reason once with its layers; empty where the totals were reached."""
        if all(total.removed_ratio >= total.asked_ratio - NEAR for total in self.totals.values()):
            return ()
        alike: dict[tuple[str, str], list[PrunedRow]] = {}
        for row in self.rows:
            if row.note:
                alike.setdefault((row.note, row.unit), []).append(row)
        return (*self.unprunable, *(_shared(note, unit, rows) for (note, unit), rows in alike.items()))

    @property
    def summary(self) -> str:
        """One line: what share was removed of what."""
        parts = [
            f"{total.removed_ratio:.1%} of the selected {unit} (asked: {total.asked_ratio:.1%})"
            for unit, total in self.totals.items()
        ]
        *others, last = parts
        places = sum(row.removed > 0 for row in self.rows)
        listed = f"{', '.join(others)} and {last}" if others else last
        return f"pruned {listed}, in {places} of {len(self.rows)} places"


def _shared(note: str, unit: str, rows: Sequence[PrunedRow]) -> str:
    """`conv1: 4 of 6 channels: why`; of several layers `conv1 4 of 6, conv2 4 of 7 channels: why`."""
    if len(rows) == 1:
        return f"{rows[0].name}: {rows[0].removed} of {rows[0].asked} {unit}: {note}"
    return f"{', '.join(f'{row.name} {row.removed} of {row.asked}' for row in rows)} {unit}: {note}"


def describe(
    model: nn.Module, plan: Plan, allotments: Mapping[str, Allotment], ratios: Mapping[str, float], unprunable: Growth
) -> tuple[tuple[PrunedRow, ...], tuple[str, ...], dict[str, Total]]:
    """The rows, the unprunable lines, and the totals by unit.

    `ratios` are the shares that widths and tensors were asked to lose, by name; `unprunable` gives what was asked of
    channels that must stay, from the ratio of their target.
    """
    rows: list[PrunedRow] = []
    sums: dict[str, list[tuple[float, float, float]]] = {}
    for target in plan.widths:
        width, unit, allotment = target.width, target.unit, allotments[target.width.name]
        each, cost = (target.channels_per_group, target.cost) if unit == "channels" else (1, 1)
        removed, ratio = len(allotment.removed), ratios[width.name]
        counts = (width.size * each, round(allotment.asked * each), removed * each)
        rows.append(PrunedRow(width.name, target.target, target.modules, unit, *counts, allotment.note))
        sums.setdefault(unit, []).append((width.size * cost, ratio * width.size * cost, removed * cost))
    for entry in plan.unpruned:
        sums.setdefault("channels", []).append((entry.channels, unprunable(entry.ratio) * entry.channels, 0.0))
    for tensor in plan.tensors:
        each, allotment = math.prod(tensor.block), allotments[tensor.tensor]
        size, removed = model.get_parameter(tensor.tensor).numel(), len(allotment.removed) * each
        module = tensor.tensor.rpartition(".")[0]
        asked = round(allotment.asked * each)
        rows.append(PrunedRow(tensor.tensor, tensor.target, (module,), "weights", size, asked, removed, allotment.note))
        sums.setdefault("weights", []).append((size, ratios[tensor.tensor] * size, removed))
    lines = tuple(
        f"{entry.module}: {entry.channels} of {entry.of} channels can't be pruned: {entry.reason}"
        for entry in plan.unpruned
        if entry.ratio > 0
    )
    totals = {unit: Total(*(sum(column) for column in zip(*parts, strict=True))) for unit, parts in sums.items()}
    return tuple(rows), lines, totals
