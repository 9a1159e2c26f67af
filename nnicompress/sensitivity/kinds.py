"""The ways to compress, by the setting `kind`: what each asks of an evaluator, and its probe."""

from __future__ import annotations

from torch import nn

from nnicompress.evaluators.contract import Evaluator
from nnicompress.events import Listener
from nnicompress.pruning.importance import IMPORTANCES
from nnicompress.sensitivity.probe import Probe
from nnicompress.sensitivity.pruned import PrunedProbe
from nnicompress.sensitivity.quantized import QuantizedProbe
from nnicompress.sensitivity.settings import SensitivitySettings


def requirements(settings: SensitivitySettings) -> tuple[tuple[str, str], ...]:
    """The capabilities that the analysis asks of an evaluator, each with what it is for."""
    needs = [("evaluate", "to measure the model with a layer compressed")]
    if settings.kind == "quantized":
        needs.append(("example_inputs", "to follow the model's values through one forward"))
        needs.append(("iterate", "to find ranges on batches of the training data"))
        return tuple(needs)
    needs.append(("example_inputs", "to follow the model's channels through one forward"))
    if IMPORTANCES[settings.importance.name].needs_gradient:
        needs.append(("iterate", f"to gather the gradients of {settings.importance.name} importance"))
    return tuple(needs)


def probe_of(settings: SensitivitySettings, evaluator: Evaluator, model: nn.Module, listener: Listener) -> Probe:
    """The probe of a model that isn't bound."""
    if settings.kind == "quantized":
        return QuantizedProbe.of(evaluator, model, settings.levels, settings.calibration_steps, listener)
    with evaluator.bound(model):
        return PrunedProbe.of(evaluator, settings.importance, settings.ratios)
