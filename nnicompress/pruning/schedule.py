"""How the sparsity grows over the removals of a schedule: pure functions of the progress t in (0, 1]."""

from __future__ import annotations

from collections.abc import Callable

from nnicompress.pruning.settings import ScheduleSettings


def linear(t: float) -> float:
    """The same share each time."""
    return t


def agp(t: float) -> float:
    """Much at first, little in the end: 1 - (1 - t)^3 (Zhu and Gupta 2017, "To prune, or not to prune", eq. 1)."""
    return 1 - (1 - t) ** 3


SCHEDULES: dict[str, Callable[[float], float]] = {"linear": linear, "agp": agp}


def fractions(settings: ScheduleSettings) -> tuple[float, ...]:
    """The share of the final ratio that is reached at each removal; the last is 1."""
    if settings.name == "one_shot":
        return (1.0,)
    assert settings.total_times is not None
    grow = SCHEDULES[settings.name]
    times = settings.total_times
    return tuple(grow(i / times) for i in range(1, times)) + (1.0,)
