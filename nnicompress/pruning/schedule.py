"""How the sparsity grows over the removals of a schedule: pure functions of the progress t in (0, 1].

Every ratio is relative to the unpruned model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from nnicompress.pruning.settings import ScheduleSettings

Growth = Callable[[float], float]
"""The ratio at the end -> the ratio at one removal."""


def linear(t: float, ratio: float) -> float:
    """The same share each time."""
    return t * ratio


def agp(t: float, ratio: float) -> float:
    """Much at first, little in the end: 1 - (1 - t)^3 (Zhu and Gupta 2017, "To prune, or not to prune", eq. 1)."""
    return (1 - (1 - t) ** 3) * ratio


def lottery_ticket(t: float, ratio: float) -> float:
    """The same share of what is left each time (Frankle and Carbin 2019): what is kept shrinks geometrically."""
    return 1 - math.pow(1 - ratio, t)


SCHEDULES: dict[str, Callable[[float, float], float]] = {"linear": linear, "agp": agp, "lottery_ticket": lottery_ticket}


def growths(settings: ScheduleSettings) -> tuple[Growth, ...]:
    """How far each removal goes; the last reaches the ratio itself."""
    if settings.name == "one_shot":
        return (_all_of_it,)
    assert settings.total_times is not None
    grow, times = SCHEDULES[settings.name], settings.total_times
    return (*(functools.partial(grow, i / times) for i in range(1, times)), _all_of_it)


def _all_of_it(ratio: float) -> float:
    return ratio
