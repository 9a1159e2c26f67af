"""The settings of the stage `sensitivity`. Imports neither torch nor hydra."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from nnicompress.pruning.settings import ImportanceSettings
from nnicompress.settings import Settings


def _share(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{value:g} is outside (0, 1)")
    return value


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values:
        raise ValueError("at least one ratio is needed")
    if len(set(values)) < len(values):
        raise ValueError("a ratio stands in the list twice")
    return tuple(sorted(values))


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class SensitivitySettings(Settings):
    """Compress one layer after the other, and measure what the model loses on the validation data."""

    mode: Literal["one", "all_but_one"] = "one"
    """`one`: each layer alone, the others whole; `all_but_one`: each layer whole, the others compressed."""
    ratios: Annotated[
        tuple[Annotated[float, AfterValidator(_share)], ...],
        BeforeValidator(_one_or_more),
        AfterValidator(_ascending),
    ] = (0.25, 0.5, 0.75)
    """Shares of a layer's channels that are pruned."""
    importance: Annotated[ImportanceSettings, BeforeValidator(_named)] = Field(
        default_factory=lambda: ImportanceSettings(name="l1")
    )
    """Which channels go first."""
    max_drop: float = Field(default=0.02, ge=0)
    """A layer is named under `exclude_op_names` where it costs more than this on average over the ratios, in the
    metric's own unit."""
