"""The search space that overrides in Hydra's grammar span, as Optuna's distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from nnicompress.config.locate import COMMAND_LINE
from nnicompress.errors import ConfigError


@dataclass(frozen=True)
class Space:
    """Keys that are searched over, by name, and overrides that every trial has."""

    axes: dict[str, BaseDistribution]
    fixed: tuple[str, ...]

    def overrides(self, params: dict[str, Any]) -> list[str]:
        """A trial's overrides in Hydra's grammar."""
        return [*self.fixed, *(f"{key}={_text(params[key])}" for key in self.axes)]


def read_space(overrides: Sequence[Override]) -> Space:
    """`A,B`, `choice(...)` and `glob(...)` are choices, `range(...)` has steps, `interval(...)` is continuous.

    `int(interval(...))` holds whole numbers, `tag(log, interval(...))` is searched logarithmically; both ends are
    included. Raises ConfigError for a key that can't be searched so.
    """
    axes: dict[str, BaseDistribution] = {}
    fixed = []
    for override in overrides:
        if override.is_sweep_override():
            axes[override.get_key_element()] = _distribution(override)
        else:
            fixed.append(override.input_line or "")
    return Space(axes, tuple(fixed))


def grid_values(distribution: BaseDistribution) -> list[Any] | None:
    """All values of an axis, None where there are endlessly many."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.step is None:
        return None
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    values = [distribution.low + number * distribution.step for number in range(count)]
    # A sum of floats is a little off, and Optuna asks for a value of the grid.
    return values if isinstance(distribution, IntDistribution) else [float(f"{value:.12g}") for value in values]


def _distribution(override: Override) -> BaseDistribution:
    key, value = override.get_key_element(), override.value()
    try:
        if isinstance(value, IntervalSweep):
            return _interval(value)
        if override.is_range_sweep():
            numbers: list[Any] = sorted(override.sweep_iterator())
            if not numbers:
                raise ValueError("the range has no values")
            step = abs(value.step)  # type: ignore[union-attr]
            if all(isinstance(number, int) for number in numbers):
                return IntDistribution(numbers[0], numbers[-1], step=step)
            return FloatDistribution(numbers[0], numbers[-1], step=float(step))
        choices = list(override.sweep_string_iterator())
        if not choices:
            raise ValueError("there are no values to choose from")
        return CategoricalDistribution(choices)
    except ValueError as error:
        raise ConfigError(f"can't be searched over: {error}", key=key.lstrip("+"), source=COMMAND_LINE) from error


def _interval(value: IntervalSweep) -> BaseDistribution:
    low, high = value.start, value.end
    assert low is not None and high is not None
    if not low < high:
        raise ValueError(f"interval({low:g}, {high:g}) is empty")
    if unknown := value.tags - {"log"}:
        raise ValueError(f"the tag {sorted(unknown)[0]!r} means nothing here; tag(log, interval(...)) does")
    log = "log" in value.tags
    if log and low <= 0:
        raise ValueError(f"a logarithmic interval starts above 0, not at {low:g}")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _text(value: Any) -> str:
    """A category is written as it was given; a number so that it is read back the same."""
    return value if isinstance(value, str) else repr(value)
