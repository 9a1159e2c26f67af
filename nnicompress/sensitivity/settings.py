"""The settings of the stage `sensitivity`. Imports neither torch nor hydra."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from nnicompress.errors import did_you_mean
from nnicompress.pruning.settings import ImportanceSettings
from nnicompress.settings import Settings

INTEGERS = tuple(f"int{bits}" for bits in range(8, 1, -1))
"""Levels of quantization, from mild to strong."""
OWN = {"pruned": ("ratios", "importance"), "quantized": ("levels", "calibration_steps")}
"""The settings that only one kind reads."""


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
    return (value,) if isinstance(value, int | float | str) and not isinstance(value, bool) else value


def _integer_types(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("at least one level is needed")
    for value in values:
        if value not in INTEGERS:
            raise ValueError(f"no level {value!r}{did_you_mean(value, INTEGERS)}; levels: {', '.join(INTEGERS)}")
    if len(set(values)) < len(values):
        raise ValueError("a level stands in the list twice")
    return tuple(sorted(values, key=INTEGERS.index))


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class SensitivitySettings(Settings):
    """Compress one layer after the other, and measure what the model loses on the validation data."""

    kind: Literal["pruned", "quantized"] = "pruned"
    """What is done to a layer."""
    mode: Literal["one", "all_but_one"] = "one"
    """`one`: each layer alone, the others whole; `all_but_one`: each layer whole, the others compressed."""
    ratios: Annotated[
        tuple[Annotated[float, AfterValidator(_share)], ...],
        BeforeValidator(_one_or_more),
        AfterValidator(_ascending),
    ] = (0.25, 0.5, 0.75)
    """For `pruned`: shares of a layer's channels."""
    importance: Annotated[ImportanceSettings, BeforeValidator(_named)] = Field(
        default_factory=lambda: ImportanceSettings(name="l1")
    )
    """For `pruned`: which channels go first."""
    levels: Annotated[tuple[str, ...], BeforeValidator(_one_or_more), AfterValidator(_integer_types)] = ("int8", "int4")
    """For `quantized`: `int8` is int8 weights, and uint8 values that a layer reads and writes."""
    calibration_steps: int = Field(default=16, ge=1)
    """For `quantized`: batches of the training data on which ranges are found."""
    max_drop: float = Field(default=0.02, ge=0)
    """A layer is named under `exclude_op_names` where it costs more than this on average over the levels, in the
    metric's own unit."""

    @model_validator(mode="after")
    def _of_the_kind(self) -> Self:
        for kind, names in OWN.items():
            wrong = next((name for name in names if name in self.model_fields_set), None)
            if kind != self.kind and wrong is not None:
                raise ValueError(f"{wrong} is for kind: {kind}, and the kind is {self.kind}")
        if self.importance.blocks not in (None, "auto"):
            raise ValueError("importance.blocks is for a pruner; here each layer is compressed with the others whole")
        return self
