"""Where fake quantizers go: one for each value that a runtime keeps in integers, one for each weight.

A value is quantized where it is made, once for all who read it; a network's inputs, where they are read. What a runtime
folds into a convolution (batch norm, ReLU) comes before the quantization; what only moves values (views, max pooling)
needs none of its own. Adds and concatenations are quantized, operands and result, where convolutions feed them: between
linear layers they stand beside layer norms, which run in float anyway.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from nnicompress.errors import ConfigError, UserError
from nnicompress.quantization.calls import ACTIVATIONS, ATTENTION, JOINS, MATMULS, PASSING
from nnicompress.quantization.modules import CONVOLUTIONS, SWAPS, TRANSPOSED, channel_axis
from nnicompress.quantization.plan import ActivationPlace, BiasPlace, Plan, WeightPlace
from nnicompress.quantization.profiles import Profile, profile_of
from nnicompress.quantization.record import Call, Recorded, Value
from nnicompress.quantization.scheme import PER_TENSOR, Scheme
from nnicompress.quantization.selection import num_inputs, select
from nnicompress.quantization.settings import (
    FUNCTIONS,
    QuantizationTargetSettings,
    QuantizationTensorSettings,
    QuantizerSettings,
)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
LAYER_FUNCTIONS = frozenset({
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "embedding",
})  # fmt: skip
"""Functions that compute what a layer does."""
INSIDE_ATTENTION = {
    "query": "_input_0", "key": "_input_1", "value": "_input_2", "probabilities": "_input_0", "context": "_input_0",
}  # fmt: skip
"""What is multiplied inside nn.MultiheadAttention -> the input that it is quantized with."""


def make_plan(model: nn.Module, settings: QuantizerSettings, recorded: Recorded) -> Plan:
    """Place what `settings` ask for on the recorded forward.

    Raises:
        ConfigError: what `select` refuses, scales along an axis that a value has not, or what the backend does not run
            in integers.
        UserError: nothing is quantized.
    """
    return _Placement(model, settings, recorded).run()


class _Placement:
    def __init__(self, model: nn.Module, settings: QuantizerSettings, recorded: Recorded) -> None:
        self.settings, self.recorded = settings, recorded
        self.profile: Profile = profile_of(settings)
        self.modules: Mapping[str, nn.Module] = dict(model.named_modules())
        selection = select(model, settings, recorded)
        self.targets, self.excluded = selection.targets, selection.excluded
        self.plan = Plan(unquantized=list(selection.unquantized))
        self.functions = FUNCTIONS if settings.functions is None else settings.functions
        self.runs: dict[str, list[Call]] = defaultdict(list)
        for call in recorded.calls:
            if call.leaf is not None:
                self.runs[call.leaf].append(call)
        self.read_by: dict[str, bool] = {}
        """Place of an activation -> whether the layer that reads it said how."""
        self.rectified: dict[str, str] = {}
        """The place of a convolution's output behind its ReLU -> the module that makes or reads it."""
        self.integers: set[Value] = set()
        """Values that come from convolutions, through nothing but what runs in integers."""

    def run(self) -> Plan:
        for call in self.recorded.calls:
            if call.leaf is not None and call.leaf in self.targets:
                self._layer(call, call.leaf, self.targets[call.leaf][1])
            elif call.leaf is None and call.name in self.functions and not self._is_excluded(call.frame):
                self._function(call)
            if self._carries_on(call):
                self.integers.update(call.outputs)
        for name in self.plan.layers:
            self._bias(name, self.targets[name][1])
        # A sum over input channels that have scales of their own has none.
        self.plan.biases = [b for b in self.plan.biases if self._scheme_of(b.input).granularity == PER_TENSOR]
        self._check_rectified()
        ran = {call.leaf for call in self.recorded.calls}
        self.plan.unquantized += self._products_of_weights()
        for name in self.targets:
            if name not in ran:
                self.plan.unquantized.append(f"{name}: the forward in evaluation mode does not run it")
        if not self.plan.weights and not self.plan.activations:
            reasons = "; ".join(self.plan.unquantized[:3]) or "no selected tensor is in the forward"
            raise UserError(f"nothing is quantized: {reasons}")
        return self.plan

    # ---------------------------------------------------------------------------------------------------------- layers

    def _layer(self, call: Call, name: str, target: QuantizationTargetSettings) -> None:
        module = self.modules[name]
        if name not in self.plan.layers:
            self.plan.layers.append(name)
            self._weights(name, module, target, call)
        if isinstance(module, nn.Embedding):
            return
        for index, value in enumerate(call.inputs[: num_inputs(module)]):
            if target.names(f"_input_{index}"):
                place = self._need(value, call, index, target.of_tensor(f"_input_{index}"), reads=True)
                if index == 0 and place is not None:
                    self.plan.inputs[name].add(place)
        if isinstance(module, nn.MultiheadAttention):
            self._attention_module(name, target, call)
        asked = target.target_names is not None and target.names("_output_0")
        follows = isinstance(module, CONVOLUTIONS) and target.names("_output_0") and target.names("_input_0")
        if asked or follows:
            self._need(self._folded(call.outputs[0]), call, 0, target.of_tensor("_output_0"))
        if follows:
            self.integers.add(call.outputs[0])

    def _weights(self, name: str, module: nn.Module, target: QuantizationTargetSettings, call: Call) -> None:
        if type(module) not in SWAPS or not target.names("weight"):
            return
        asked = target.of_tensor("weight")
        parameters = ("in_proj_weight", "out_proj.weight") if isinstance(module, nn.MultiheadAttention) else ("weight",)
        for parameter in parameters:
            scheme = self.profile.weight_scheme(asked, module, channel_axis(module))
            self.plan.weights.append(WeightPlace(name, parameter, scheme, asked, self._batch_norm_behind(call)))

    def _bias(self, name: str, target: QuantizationTargetSettings) -> None:
        module, inputs = self.modules[name], self.plan.inputs.get(name, ())
        weight = next((w for w in self.plan.weights if w.module == name and w.parameter == "weight"), None)
        if weight is None or not target.names("bias") or getattr(module, "bias", None) is None:
            return
        if len(inputs) != 1:  # no unit, or one of each run's own, which lowering gives it
            return
        # A bias in front of a batch norm is folded into it, and only the sum becomes integers.
        per_output = weight.scheme.granularity.axis in (None, channel_axis(module))
        if isinstance(module, TRANSPOSED) and module.groups > 1 and weight.scheme.granularity.axis is not None:
            per_output = False  # axis 1 of its weight has the output channels of one group
        if per_output and weight.scheme.symmetric and weight.batch_norm is None:
            self.plan.biases.append(BiasPlace(name, *inputs))

    def _attention_module(self, name: str, target: QuantizationTargetSettings, call: Call) -> None:
        length = call.inputs[0].tensor.shape
        for inner, outer in INSIDE_ATTENTION.items():
            if target.names(outer):
                # Heads have no channels of their own.
                settings = target.of_tensor(outer).model_copy(update={"granularity": None})
                self._add(f"{name}/{inner}", settings, tuple(length), call)

    def _batch_norm_behind(self, call: Call) -> str | None:
        if not isinstance(self.modules[call.leaf or ""], CONVOLUTIONS):
            return None
        readers = call.outputs[0].readers
        if len(readers) != 1 or readers[0].leaf is None or call.outputs[0] in self.recorded.returned:
            return None
        name = readers[0].leaf
        once = len(self.runs[name]) == 1 and len(self.runs[call.leaf or ""]) == 1
        norm = self.modules[name]
        folds = type(norm) in BATCH_NORMS and norm.running_var is not None
        return name if once and folds else None

    # ------------------------------------------------------------------------------------------------------- functions

    def _function(self, call: Call) -> None:
        values = call.inputs
        if call.own_tensors or not values or not all(value.floating for value in values):
            return
        settings = QuantizationTensorSettings()
        if call.name in JOINS:
            if not any(value in self.integers for value in values):
                return
            for index, value in enumerate(values):
                self._need(value, call, index, settings)
            self._need(self._folded(call.outputs[0]), call, 0, settings)
        elif call.name in MATMULS or call.name == ATTENTION:
            if self.settings.functions is None and not self._is_beside_layer(call):
                return
            for index, value in enumerate(values):
                self._need(value, call, index, settings)
            if call.name == ATTENTION:
                self._add(f"{call.place}/probabilities", settings, tuple(values[0].tensor.shape), call)

    def _is_beside_layer(self, call: Call) -> bool:
        """Whether a layer whose activations are asked for feeds a call or reads what it makes."""
        return self._meets_layer(call, _makers) or self._meets_layer(call, _readers)

    def _meets_layer(self, call: Call, step: Callable[[Call], Iterable[Call]]) -> bool:
        """Whether steps from `call` lead to such a layer, with no other layer before it."""
        waiting, seen = [call], {call}
        while waiting:
            for other in set(step(waiting.pop())) - seen:
                seen.add(other)
                if other.leaf is None or type(self.modules[other.leaf]) not in SWAPS:
                    waiting.append(other)
                elif other.leaf in self.targets:
                    target = self.targets[other.leaf][1]
                    if target.names("_input_0") or target.names("_output_0"):
                        return True
        return False

    def _carries_on(self, call: Call) -> bool:
        """Whether the results are integers because the operands are."""
        if not call.inputs or not all(value in self.integers for value in call.inputs):
            return call.name in JOINS and call.leaf is None and any(value in self.integers for value in call.inputs)
        return call.name in PASSING or call.name in JOINS or self._is_folded(call)

    def _is_folded(self, call: Call) -> bool:
        module = self.modules.get(call.leaf) if call.leaf is not None else None
        return type(module) in BATCH_NORMS or call.name in ACTIVATIONS

    def _is_excluded(self, frame: str) -> bool:
        return any(frame == name or frame.startswith(f"{name}.") for name in self.excluded)

    def _products_of_weights(self) -> list[str]:
        """Layers that a forward spells out with parameters of its own, `F.linear(x, self.weight)`, one line each."""
        if all(target.selects for target in self.settings.targets.values()):
            return []
        places = {
            call.place
            for call in self.recorded.calls
            if call.leaf is None and call.name in LAYER_FUNCTIONS and not self._is_excluded(call.frame)
            if not isinstance(self.modules[call.frame], tuple(SWAPS))  # a subclass, which is told already
        }
        return [f"{place}: a layer that is no module" for place in sorted(places)]

    # ---------------------------------------------------------------------------------------------------------- values

    def _folded(self, value: Value) -> Value:
        """What becomes of `value` by the batch norm and the activation behind it, where nobody else reads it."""
        while len(value.readers) == 1 and value not in self.recorded.returned and self._is_folded(value.readers[0]):
            value = value.readers[0].outputs[0]
        return value

    def _need(
        self, value: Value, reader: Call, index: int, settings: QuantizationTensorSettings, *, reads: bool = False
    ) -> str | None:
        """Place a quantizer where `value` is made; returns the place, or None where no float is there.

        `reads`: the settings are those of a layer's input, which go before those of what makes the value or adds it.
        """
        read_at_leaf = value in reader.inputs and self._is_read_at(reader, index)
        # The channels that a layer reads lie elsewhere in what they were moved from.
        whole = settings.granularity in (None, "default", "tensor")
        moved = not whole and self._moved_from(value) is not None
        value = value if moved else self._origin(value)
        if not value.floating:
            return None
        place = None if moved or read_at_leaf else self._made_at(value)
        place = self._read_at(reader, index) if place is None else place
        if place is None:
            self.plan.unquantized.append(
                f"{reader.place}: its value is made in a Sequential with a forward of its own, which has no room for "
                "quantizers"
            )
            return None
        maker = value.maker.leaf if value.maker is not None else None
        if not moved and maker in self.targets and self.targets[maker][1].names("_output_0"):
            own = self.targets[maker][1].of_tensor("_output_0")
            if own != QuantizationTensorSettings() and value.maker is not None:
                settings, reader = own, value.maker
        if self._is_rectified(value):
            self.rectified.setdefault(place, reader.leaf or "")
        reads = reads and settings != QuantizationTensorSettings()
        self._add(place, settings, tuple(value.tensor.shape), reader, reads=reads)
        return place

    def _add(
        self,
        place: str,
        settings: QuantizationTensorSettings,
        shape: tuple[int, ...],
        call: Call,
        *,
        reads: bool = False,
    ) -> None:
        """`call` reads the value, or makes it: its layer says where the channels are."""
        if place in self.plan.activations and not (reads and not self.read_by[place]):
            return
        self.read_by[place] = reads
        module = self.modules.get(call.leaf) if call.leaf is not None else None
        last = type(module) in SWAPS and not isinstance(module, CONVOLUTIONS)
        dims = len(shape)
        scheme = self.profile.activation_scheme(settings, dims - 1 if last else 1, dims)
        axis = scheme.granularity.axis
        if axis is not None and not 0 < axis < dims:
            why = "dimension 0 is the batch" if axis == 0 else f"a tensor of shape {shape} has no dimension {axis}"
            key = f"targets.{self.targets[call.leaf][0]}" if call.leaf in self.targets else "targets"
            raise ConfigError(f"{place} can't have scales along axis {axis}: {why}", key=key)
        self.plan.activations[place] = ActivationPlace(place, scheme, settings, shape)

    def _is_rectified(self, value: Value) -> bool:
        """Whether a convolution makes it, with a ReLU behind."""
        found, maker = False, value.maker
        while maker is not None and self._is_folded(maker):
            found |= maker.name in ACTIVATIONS
            maker = maker.inputs[0].maker
        return found and maker is not None and isinstance(self.modules.get(maker.leaf or ""), CONVOLUTIONS)

    def _check_rectified(self) -> None:
        """A runtime folds a ReLU into the quantization behind it where zero is the lowest integer."""
        for place, module in self.rectified.items():
            if self.settings.backend == "onnxruntime_x86" and self._scheme_of(place).symmetric:
                raise ConfigError(
                    f"{place}: onnxruntime_x86 runs a convolution with its ReLU in integers where zero is the lowest "
                    "of them; give these activations quant_scheme: affine",
                    key=f"targets.{self.targets[module][0]}" if module in self.targets else "targets",
                )

    def _scheme_of(self, place: str) -> Scheme:
        return self.plan.activations[place].scheme

    def _origin(self, value: Value) -> Value:
        while (source := self._moved_from(value)) is not None:
            value = source
        return value

    def _moved_from(self, value: Value) -> Value | None:
        """The value that `value` is but a view or a choice of; None where it was computed."""
        maker = value.maker
        if maker is None or not maker.inputs:
            return None
        # A layer with weights computes, whatever its last call is: attention with the batch first ends in a transpose.
        if maker.leaf is not None and next(self.modules[maker.leaf].parameters(), None) is not None:
            return None
        if maker.name in PASSING:
            return maker.inputs[0]
        if maker.name == "cat":  # a cache of keys that is empty in training
            filled = [v for v in maker.inputs if v.tensor.numel()]
            return filled[0] if len(filled) == 1 and not maker.own_tensors else None
        return None

    def _made_at(self, value: Value) -> str | None:
        maker = value.maker
        if maker is None:
            return None
        if maker.leaf is not None and self._is_one(maker.leaf):
            return f"{maker.leaf}/output_{value.position}"
        return f"{maker.place}/output_{value.position}" if self._is_reached(maker) else None

    def _read_at(self, reader: Call, index: int) -> str | None:
        if reader.leaf is not None and self._is_one(reader.leaf):
            return f"{reader.leaf}/input_{index}"
        return f"{reader.place}/input_{index}" if self._is_reached(reader) else None

    def _is_one(self, leaf: str) -> bool:
        """Whether a leaf's own quantizers serve all its runs; else each run has its own at the call that it makes."""
        runs, module = self.runs[leaf], self.modules[leaf]
        if any(not self._has_room(run.frame) for run in runs):
            return True
        one_call = type(module) not in SWAPS or isinstance(module, (*CONVOLUTIONS, nn.Linear, nn.Embedding))
        return not one_call or (len(runs) == 1 and not runs[0].discarded)

    def _is_read_at(self, reader: Call, index: int) -> bool:
        """Whether what a leaf reads is quantized there for all its runs, because one of them reads what nobody made."""
        if reader.leaf is None or not self._is_one(reader.leaf):
            return False
        values = [self._origin(run.inputs[index]) for run in self.runs[reader.leaf] if index < len(run.inputs)]
        return any(self._made_at(value) is None for value in values)

    def _is_reached(self, call: Call) -> bool:
        return call.number is not None and self._has_room(call.frame)

    def _has_room(self, frame: str) -> bool:
        """A Sequential runs its children, so it can't have one that is no part of its forward."""
        return not isinstance(self.modules[frame], (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def _makers(call: Call) -> Iterable[Call]:
    return (value.maker for value in call.inputs if value.maker is not None)


def _readers(call: Call) -> Iterable[Call]:
    return (reader for value in call.outputs for reader in value.readers)
