"""The settings of `expected:`, which a reproduced run is held against."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from nnicompress.settings import Settings


class Bounds(Settings):
    """A closed interval; at least one end is given."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _an_interval(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("min or max (or both) must be given")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class ExpectedSettings(Settings):
    """What a reproduced run must reach; ratios are final over baseline, so 0.6 means 40 % less."""

    accuracy: Bounds | None = None
    """The recipe's metric on the test data, of the exported file where there is one."""
    accuracy_drop: Bounds | None = None
    """Baseline minus final; for a metric where lower is better, final minus baseline."""
    params_ratio: Bounds | None = None
    macs_ratio: Bounds | None = None
    latency_ratio: Bounds | None = None
    """Of the medians at the recipe's batch size, in one runtime."""
    size_ratio: Bounds | None = None
    """Of the bytes of the weights' safetensors files."""
    deployed_gap: Bounds | None = None
    """How far the metric of the exported file is from that of the model it was made of."""
