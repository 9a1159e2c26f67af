"""Importance: pure functions of a weight and its gradient, one score an element; larger means missed more.

The score of a channel group (or of a block) is `of_group(sum of its elements' scores)`, averaged over batches where the
scores need gradients. A new importance is one such function and one line in `IMPORTANCES` (see docs/compressors.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nnicompress.pruning.settings import ImportanceSettings

ElementScores = Callable[[Tensor, Tensor], Tensor]
"""(weight, gradient) -> scores, all of one shape; without `needs_gradient` the gradient is zeros of shape []."""


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


Scope = Literal["producers", "consumers", "group"]
"""Which slots of a channel group count: the weights that make the channel, those that read it, or all."""


@dataclass(frozen=True)
class Importance:
    """An element's score, what a group makes of the sum, and which weights of a channel group count.

    `elements` is None for scores drawn at random, one for each group.
    """

    elements: ElementScores | None
    of_group: Callable[[Tensor], Tensor] = unchanged
    needs_gradient: bool = False
    scope: Scope = "group"
    name: str = "custom"


IMPORTANCES: dict[str, Importance] = {
    "taylor": Importance(squared_taylor, needs_gradient=True, name="taylor"),
    "l1": Importance(magnitude, scope="producers", name="l1"),
    "l2": Importance(squared_magnitude, torch.sqrt, scope="producers", name="l2"),
    "level": Importance(magnitude, name="level"),
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
