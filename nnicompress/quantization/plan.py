"""What a quantizer is going to do: a place for each weight, each activation and each bias."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from nnicompress.quantization.scheme import Scheme
from nnicompress.quantization.settings import QuantizationTensorSettings


@dataclass(frozen=True)
class WeightPlace:
    """A parameter: `module/weight`."""

    module: str
    parameter: str
    scheme: Scheme
    settings: QuantizationTensorSettings
    batch_norm: str | None = None
    """The batch norm that runs right behind, which becomes part of the weight in a runtime."""

    @property
    def place(self) -> str:
        """As in results."""
        return f"{self.module}/{self.parameter.replace('.', '_')}"


@dataclass(frozen=True)
class ActivationPlace:
    """A value: `module/output_0`, `frame/add_0/input_1`."""

    place: str
    scheme: Scheme
    settings: QuantizationTensorSettings
    shape: tuple[int, ...]
    """Of the example."""


@dataclass(frozen=True)
class BiasPlace:
    """A bias: int32 at the scale of its layer's input times that of its weight."""

    module: str
    input: str
    """The input's place."""


@dataclass
class Plan:
    """Everything that is to be quantized, and the selected modules that stay in float, one line each."""

    weights: list[WeightPlace] = field(default_factory=list)
    activations: dict[str, ActivationPlace] = field(default_factory=dict)
    biases: list[BiasPlace] = field(default_factory=list)
    unquantized: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    """The selected modules that are quantized, in the model's order."""
    inputs: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The places of a layer's input, of all its runs."""
