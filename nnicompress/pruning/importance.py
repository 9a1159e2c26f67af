"""Importance: pure functions of a weight and what is known about it, one score an element; larger means missed more.

The score of a channel group (or of a block) is `of_group(sum of its elements' scores)`, averaged over batches where the
scores need gradients. A new importance is one such function and one line in `IMPORTANCES` (see docs/pruning.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nnicompress.pruning.settings import ImportanceSettings

ElementScores = Callable[[Tensor, Tensor], Tensor]
"""(weight, gradient) -> scores, all of one shape; without `needs_gradient` the gradient is zeros of shape [].

Where the importance has an `InputStatistic`, that stands in the gradient's place, in the weight's shape.
"""


def unchanged(total: Tensor) -> Tensor:
    """The sum itself."""
    return total


def magnitude(weight: Tensor, gradient: Tensor) -> Tensor:
    """|w|: summed over a group it is the L1 norm (Li et al. 2017); alone it is level pruning (Han et al. 2015)."""
    return weight.abs()


def squared_magnitude(weight: Tensor, gradient: Tensor) -> Tensor:
    """w^2: the root of its sum over a group is the L2 norm."""
    return weight.square()


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """The first-order change of the loss if the element were zero, with its sign (Molchanov et al. 2019)."""
    return gradient * weight


def squared_taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """(g * w)^2 of single elements (Molchanov et al. 2019, eq. 8 summed over the group)."""
    return (gradient * weight).square()


def movement(weight: Tensor, gradient: Tensor) -> Tensor:
    """-g * w: above zero where a step of descent takes the weight away from zero (Sanh et al. 2020, eq. 2)."""
    return -gradient * weight


def statistic(weight: Tensor, inputs: Tensor) -> Tensor:
    """The statistic of what the weight is multiplied with, whatever the weight."""
    return inputs


def weighted_statistic(weight: Tensor, inputs: Tensor) -> Tensor:
    """|w| times the norm of what it is multiplied with (Wanda, Sun et al. 2024, eq. 1)."""
    return weight.abs() * inputs


def distances(rows: Tensor) -> Tensor:
    """The sum of each row's distances to all others (FPGM, He et al. 2019, eq. 6); rows of shape [groups, elements].

    The row with the smallest sum lies nearest to the geometric median: the others can replace it best. Rows of zeros
    are channels that were removed before; they are no points of the median, and their score is zero.
    """
    alive = rows.ne(0).any(dim=1)
    points = rows[alive]
    scores = rows.new_zeros(len(rows))
    # Through matrix products near points would lose their distance to rounding.
    scores[alive] = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
    return scores


def lamp(scores: Tensor) -> Tensor:
    """w^2 over the sum of all w^2 that are not smaller, within one layer (LAMP, Lee et al. 2021, eq. 4).

    That makes layers comparable: the largest score of each is 1, so no layer loses all of its weights.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = scores[order]
    result = torch.empty_like(scores)
    result[order] = torch.where(ranked > 0, ranked / ranked.cumsum(0), 0.0)
    return result


@dataclass(frozen=True)
class InputStatistic:
    """A mean over batches and places of one input channel of a layer: `of_mean(mean(of_values(inputs)))`."""

    of_values: Callable[[Tensor], Tensor]
    of_mean: Callable[[Tensor], Tensor] = unchanged


def is_nonzero(values: Tensor) -> Tensor:
    """1 where a value is not zero: its mean is 1 - APoZ, the average percentage of zeros (Hu et al. 2016, eq. 1)."""
    return values.ne(0).float()


Scope = Literal["producers", "consumers", "group", "scales", "norms"]
"""Which slots of a channel group count: the weights that make the channel, those that read it, or all; the scales of
the norms between, or their scales and shifts."""


@dataclass(frozen=True)
class Importance:
    """An element's score, what a group makes of the sum, and which weights of a channel group count.

    `elements` is None for scores drawn at random, one for each group, and for those of `rows`.
    """

    elements: ElementScores | None
    of_group: Callable[[Tensor], Tensor] = unchanged
    needs_gradient: bool = False
    scope: Scope = "group"
    name: str = "custom"
    inputs: InputStatistic | None = None
    """What `elements` is given in the gradient's place; batches are run for it."""
    averages: bool = False
    """Whether a channel group's score is the mean over its elements, not the sum."""
    rows: Callable[[Tensor], Tensor] | None = None
    """Scores channel groups beside each other: [groups, elements of one group] -> [groups], in place of `elements`."""
    of_unit: Callable[[Tensor], Tensor] = unchanged
    """What all scores of one width (or tensor) become together."""
    comparable: bool = False
    """Whether scores of different layers compare as they are, where the settings say nothing else."""
    learning: Literal["scale_penalty", "movement", "soft_movement"] | None = None
    """What is learned in a training before the first removal; see `learning.py`."""

    @property
    def reads_evidence(self) -> bool:
        """Whether the second argument of `elements` is a gradient or a statistic, not zeros."""
        return self.needs_gradient or self.inputs is not None or self.moves

    @property
    def moves(self) -> bool:
        """Whether scores are sums over a training's gradients, with their sign."""
        return self.learning in ("movement", "soft_movement")

    @property
    def is_random(self) -> bool:
        """Whether scores are drawn."""
        return self.elements is None and self.rows is None


IMPORTANCES: dict[str, Importance] = {
    "taylor": Importance(squared_taylor, needs_gradient=True, name="taylor"),
    # The gate of the paper's section 3.3 multiplies what the batch norm gives: its derivative is g * w summed over
    # scale and shift.
    "taylor_bn": Importance(taylor, torch.square, needs_gradient=True, scope="norms", name="taylor_bn"),
    "l1": Importance(magnitude, scope="producers", name="l1"),
    "l2": Importance(squared_magnitude, torch.sqrt, scope="producers", name="l2"),
    "level": Importance(magnitude, name="level"),
    "lamp": Importance(squared_magnitude, scope="producers", name="lamp", of_unit=lamp, comparable=True),
    "fpgm": Importance(None, scope="producers", name="fpgm", rows=distances),
    "slim": Importance(magnitude, scope="scales", name="slim", averages=True, learning="scale_penalty"),
    "apoz": Importance(statistic, scope="consumers", name="apoz", inputs=InputStatistic(is_nonzero), averages=True),
    "mean_activation": Importance(
        statistic, scope="consumers", name="mean_activation", inputs=InputStatistic(torch.abs), averages=True
    ),
    "wanda": Importance(
        weighted_statistic, scope="consumers", name="wanda", inputs=InputStatistic(torch.square, torch.sqrt)
    ),
    "movement": Importance(movement, name="movement", comparable=True, learning="movement"),
    "soft_movement": Importance(
        movement, torch.sigmoid, name="soft_movement", comparable=True, learning="soft_movement"
    ),
    "random": Importance(None, name="random"),
}
"""The shipped importances by the name that settings use."""


def importance_of(settings: ImportanceSettings) -> Importance:
    """The importance that `settings` describe."""
    importance = IMPORTANCES[settings.name]
    if settings.name == "taylor" and settings.aggregation == "square_of_sum":
        # A gate on the channel multiplies what its consumers read: the sum of g * w over their slots is exactly the
        # gate's derivative, whatever norm or activation lies between the producer and them.
        importance = replace(importance, elements=taylor, of_group=torch.square, scope="consumers")
    return importance if settings.scope is None else replace(importance, scope=settings.scope)
