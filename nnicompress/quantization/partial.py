"""Some parts of a model quantized, the others in float: which tensors that leaves, as if it had been asked for so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import nn

from nnicompress.pruning.targets import select_modules
from nnicompress.quantization.calls import ATTENTION, MATMULS
from nnicompress.quantization.placement import make_plan
from nnicompress.quantization.plan import Plan
from nnicompress.quantization.record import Call, Recorded
from nnicompress.quantization.result import QuantizationResult
from nnicompress.quantization.settings import FUNCTIONS, QuantizerSettings


class PartialPlans:
    """The tensors that settings quantize in a model some of whose parts stay in float.

    A part is a layer, or the matrix products in a module's own forward (`attention.self/matmul`). A value stays in
    integers as long as a part that reads it is, and an `add` as long as convolutions in integers feed it: in float, a
    layer is what it is under `exclude_op_names`. Products that the settings quantize stay in integers beside it.
    """

    def __init__(self, model: nn.Module, settings: QuantizerSettings, recorded: Recorded) -> None:
        """`recorded`: a forward of `model` (`record.record`)."""
        self._model, self._settings, self._recorded = model, settings, recorded
        self._selected = {
            name: set(select_modules(model, target, key=f"targets.{name}")[0])
            for name, target in settings.targets.items()
        }
        plan = make_plan(model, settings, recorded)
        self._all = _places(plan)
        calls = dict.fromkeys(filter(None, map(_part, recorded.calls)))
        self.parts = (*plan.layers, *(part for part in calls if self._places((), (part,)) != self._all))
        """In the model's order, layers first."""
        self.parameters: Mapping[str, tuple[str, ...]] = {
            part: tuple(f"{part}.{weight.parameter}" for weight in plan.weights if weight.module == part)
            for part in self.parts
        }
        """Part -> the names of its quantized parameters."""
        self.batch_norms: Mapping[str, str] = {
            weight.module: weight.batch_norm for weight in plan.weights if weight.batch_norm is not None
        }
        """Layer -> the batch norm right behind it."""

    def places(self, in_float: Collection[str]) -> frozenset[str]:
        """The tensors that are quantized with these parts in float; none where that is all of them."""
        if set(self.parts) <= set(in_float):
            return frozenset()
        calls = {part for part in in_float if "/" in part}
        return self._places(set(in_float) - calls, calls)

    def result(self, whole: QuantizationResult, in_float: Collection[str]) -> QuantizationResult:
        """`whole`, the result for all parts, less what these leave in float; the others keep their integers."""
        places = self.places(in_float)
        return QuantizationResult(
            {place: tensor for place, tensor in whole.tensors.items() if place in places},
            whole.unquantized,
            {place: norm for place, norm in whole.folded.items() if place in places},
            tuple(place for place in whole.signs if place in places),
        )

    def _places(self, layers: Collection[str], calls: Collection[str]) -> frozenset[str]:
        targets = {
            name: target.model_copy(update={"exclude_op_names": (*target.exclude_op_names, *sorted(layers))})
            for name, target in self._settings.targets.items()
            if self._selected[name] - set(layers)
        }
        # Products are parts of their own: they stay in integers beside layers in float.
        functions = FUNCTIONS if self._settings.functions is None else self._settings.functions
        settings = self._settings.model_copy(update={"targets": targets, "functions": functions})
        recorded = replace(self._recorded, calls=tuple(c for c in self._recorded.calls if _part(c) not in calls))
        return _places(make_plan(self._model, settings, recorded)) & self._all


def _part(call: Call) -> str | None:
    """The part that a call in a module's own forward belongs to."""
    products = call.leaf is None and (call.name in MATMULS or call.name == ATTENTION)
    return f"{call.frame}/{call.name}" if products else None


def _places(plan: Plan) -> frozenset[str]:
    weights = (weight.place for weight in plan.weights)
    return frozenset([*plan.activations, *weights, *(f"{bias.module}/bias" for bias in plan.biases)])
