"""Layers quantized: fake-quantized in ranges of a calibration, at so many bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from nnicompress.evaluators.contract import Evaluator
from nnicompress.events import Listener, silent
from nnicompress.quantization.attach import simulated
from nnicompress.quantization.partial import PartialPlans
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.record import record
from nnicompress.quantization.result import QuantizationResult
from nnicompress.quantization.settings import QuantizerSettings
from nnicompress.sensitivity.probe import Subject


def level_settings(level: str, calibration_steps: int) -> QuantizerSettings:
    """Of a quantizer that calibrates: `int4` is int4 in weights, uint4 in the values that layers read and write."""
    values: dict[str, Any] = {"quant_dtype": f"u{level}"}
    special = {"weight": {"quant_dtype": level}, "_input_": values, "_output_": values}
    return QuantizerSettings.from_targets(
        {"all": {"target_settings": special}},
        functions=(),
        trains=False,
        observer="min_max",
        calibration_steps=calibration_steps,
    )


class QuantizedProbe:
    """Quantizes what the runtime computes in integers: weights, and what layers read; each layer is a subject."""

    def __init__(self, model: nn.Module, plans: PartialPlans, results: Mapping[str, QuantizationResult]) -> None:
        """`results` by level: of all layers quantized."""
        self.model, self.plans, self.results = model, plans, results
        self.subjects = tuple(Subject(part, (part,), plans.parameters[part]) for part in plans.parts)

    @classmethod
    def of(
        cls,
        evaluator: Evaluator,
        model: nn.Module,
        levels: Sequence[str],
        calibration_steps: int,
        listener: Listener = silent,
    ) -> QuantizedProbe:
        """The probe of a model that isn't bound, calibrated here, once for each level."""
        results: dict[str, QuantizationResult] = {}
        for level in levels:
            settings = level_settings(level, calibration_steps)
            results[level] = Quantizer(settings, evaluator, listener).compress(model)
        with evaluator.bound(model):
            args, kwargs = evaluator.example_inputs(2)
            plans = PartialPlans(model, settings, record(model, args, kwargs))
        return cls(model, plans, results)

    @property
    def levels(self) -> tuple[str, ...]:
        """The integer types."""
        return tuple(self.results)

    @contextmanager
    def applied(self, subjects: Sequence[Subject], level: str) -> Iterator[bool]:
        """Simulate the subjects' integers; see `Probe.applied`."""
        spared = set(self.plans.parts) - {subject.name for subject in subjects}
        result = self.plans.result(self.results[level], spared)
        with simulated(self.model, result):
            yield bool(result.tensors)
