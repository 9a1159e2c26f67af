"""The quantizer: scheme x (observer or learned scale) x schedule, around the user's training.

record one forward, place fake quantizers          record.py, placement.py, attach.py
calibrate: ranges and first scales                 calibration.py
train, simulated                                   (not where `trains` is false)
    after each step: ranges follow values and weights, the schedule switches
take everything out again
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress import distributed, exchange
from nnicompress.errors import ConfigError, UserError
from nnicompress.evaluators.contract import Evaluator, Handle, StepEvent
from nnicompress.evaluators.training_step import device_of
from nnicompress.events import Listener, Note, silent
from nnicompress.quantization import calibration
from nnicompress.quantization.attach import Attached
from nnicompress.quantization.build import build_quantizers, learned
from nnicompress.quantization.compilation import Compilation, elements_per_step
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.fixed import BinaryActivations, BinaryWeights, DoReFaWeights, GradientQuantizer
from nnicompress.quantization.modes import refuse_checkpointed, training_numbers
from nnicompress.quantization.modules import CONVOLUTIONS
from nnicompress.quantization.observers import commit
from nnicompress.quantization.parameters import fold_factor
from nnicompress.quantization.placement import BATCH_NORMS, make_plan
from nnicompress.quantization.plan import Plan, WeightPlace
from nnicompress.quantization.record import record
from nnicompress.quantization.result import QuantizationResult, QuantizedTensor
from nnicompress.quantization.scheme import Scheme
from nnicompress.quantization.settings import QuantizerSettings

Targets = Sequence[Mapping[str, Any]]
Range = tuple[Tensor, Tensor]
"""Least and greatest values, in the shape of the scales."""
_UNEQUAL_RANGES = (
    "their ranges were made of different weights; the training must average its gradients over the processes"
)


class Quantizer:
    """Finds how to quantize a model, in training or by calibration; `freeze` then makes integers of it.

    Args:
        settings: QuantizerSettings, or a list of dicts, one a target: `[{"op_types": ["Conv2d"]}]`.
        evaluator: the user's training and evaluation.
        listener: hears notes about the progress.
        others: with a list: the other keys of QuantizerSettings, such as `method="lsq"`.

    Raises:
        InputErrors: wrong keys or values in the list of dicts.
    """

    def __init__(
        self,
        settings: QuantizerSettings | Targets,
        evaluator: Evaluator,
        listener: Listener = silent,
        **others: Any,
    ) -> None:
        if not isinstance(settings, QuantizerSettings):
            settings = QuantizerSettings.from_targets(settings, **others)
        elif others:
            raise TypeError(f"QuantizerSettings already say {', '.join(others)}")
        self.settings = settings
        self.evaluator = evaluator
        self._listener = listener
        self._quantizers: dict[str, FakeQuantizer] = {}
        self._step = 0
        self._corrected: list[tuple[Tensor, Tensor]] = []
        """What a bias correction changed, each with what it held before."""
        self._resume: Mapping[str, Any] | None = None

    @staticmethod
    def requirements(settings: QuantizerSettings) -> tuple[tuple[str, str], ...]:
        """The capabilities that a quantizer with these settings asks of an evaluator, each with what it is for."""
        needs = [("example_inputs", "to follow the model's values through one forward")]
        if settings.method not in ("dorefa", "bnn"):
            needs.append(("iterate", "to find ranges on batches of the training data"))
        if settings.trains:
            needs.append(("train", f"to train with {settings.method} quantization simulated"))
        return tuple(needs)

    def check(self, model: nn.Module) -> Plan:
        """What would be quantized where, proved by a forward in each mode; nothing is changed, calibrated or trained.

        Raises:
            UserError: what `compress` would raise before it begins.
        """
        self._require()
        with self.evaluator.bound(model):
            plan, _, attached = self._attached(model)
            attached.remove()
        return plan

    def compress(
        self,
        model: nn.Module,
        max_steps: int | None = None,
        max_epochs: int | None = None,
        *,
        alongside: Callable[[Evaluator], Handle] | None = None,
    ) -> QuantizationResult:
        """Calibrate, and train `model` with quantization simulated; says how each tensor is quantized.

        `alongside` registers more with the evaluator while the model is bound, such as `masks.attach` of a pruned one.

        The model keeps its trained float weights (of `dorefa` and `bnn`: those that were simulated), and nothing else
        is left on it. `attach.simulated(model, result)` computes as simulated.

        Raises:
            UserError: the evaluator lacks something, selectors don't fit, the backend can't run what is asked for in
                integers, or a part of the forward is not reached in training.
        """
        self._require()
        if not self.settings.trains and (max_steps is not None or max_epochs is not None):
            raise UserError(
                "max_steps and max_epochs ask for a training, and the quantizer's settings say trains: false"
            )
        simulate_from = self.settings.schedule.simulate_from
        if max_steps is not None and simulate_from >= max_steps:
            raise ConfigError(
                f"simulated from step {simulate_from}, a training of {max_steps} steps never is",
                key="schedule.simulate_from",
            )
        with self.evaluator.bound(model):
            if alongside is not None:
                alongside(self.evaluator)
            plan, self._quantizers, attached = self._attached(model)
            try:
                self._add_learned()
                self._begin(model, plan)
                if self.settings.trains:
                    with self._compilation(model) as compilation:
                        self._train(model, plan, max_steps, max_epochs, compilation)
                exchange.check_equal("the ranges", self._parameters(), _UNEQUAL_RANGES)
                result = self._result(plan)
                self._leave_weights(model, plan)
            except BaseException:
                for tensor, before in self._corrected:
                    tensor.copy_(before)
                raise
            finally:
                self._corrected = []
                attached.remove()
        if self.settings.trains and simulate_from >= self._step:
            self._listener(
                Note(
                    f"nothing was simulated: simulate_from is {simulate_from}, and the training ended after "
                    f"{self._step} steps",
                    warning=True,
                )
            )
        self._listener(Note(result.summary))
        if result.unquantized:
            more = f" (and {len(result.unquantized) - 5} more)" if len(result.unquantized) > 5 else ""
            self._listener(Note(f"left in float: {'; '.join(result.unquantized[:5])}{more}", warning=True))
        return result

    def state_dict(self) -> dict[str, Any]:
        """Ranges, scales, observers and switches of the training in progress; see `load_state_dict`."""
        tensors = {
            f"{place}:{name}": tensor.detach().clone()
            for place, quantizer in self._quantizers.items()
            for name, tensor in quantizer.state_dict().items()
        }
        return {"step": self._step, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `compress` goes on with the training from there, without calibrating again.

        The model's weights and the evaluator's own state are the caller's to restore.
        """
        self._resume = state

    # --------------------------------------------------------------------------------------------------------- before

    def _require(self) -> None:
        for capability, why in self.requirements(self.settings):
            self.evaluator.require(capability, by=f"the {self.settings.method} quantizer", why=why)

    def _attached(self, model: nn.Module) -> tuple[Plan, dict[str, FakeQuantizer], Attached]:
        """Fake quantizers in the model, which are all reached."""
        args, kwargs = self.evaluator.example_inputs(2)
        recorded, training = record(model, args, kwargs), record(model, args, kwargs, training=True)
        numbers = training_numbers(recorded.runs, training.runs)
        plan = make_plan(model, self.settings, recorded)
        quantizers = build_quantizers(model, plan, self.settings)
        if self.settings.trains:
            refuse_checkpointed(quantizers, training.checkpointed, numbers)
        attached = Attached(model, quantizers, numbers)
        try:
            attached.prove(args, kwargs, plan.inputs)
        except Exception:
            attached.remove()
            raise
        return plan, quantizers, attached

    def _add_learned(self) -> None:
        """Before the calibration too: an evaluator wants to know of every trainable parameter of its model."""
        trained = [
            (f"{place}.{name}", parameter)
            for place, quantizer in learned(self._quantizers).items()
            for name, parameter in quantizer.learned().items()
        ]
        if trained:
            self.evaluator.add_parameters(trained)  # forgotten when the model is no longer bound

    def _begin(self, model: nn.Module, plan: Plan) -> None:
        """Ranges and scales to begin with: those of a calibration, or of the training that is resumed."""
        state, self._resume = self._resume, None
        if state is None:
            self._step = 0
            self._calibrate(model, plan)
            self._switch(0)
            return
        self._step = int(state["step"])
        for place, quantizer in self._quantizers.items():
            own = {name: state["tensors"].get(f"{place}:{name}") for name in quantizer.state_dict()}
            if missing := [name for name, tensor in own.items() if tensor is None]:
                raise UserError(
                    f"the quantizer's state is for other settings or another model: no {place}:{missing[0]}"
                )
            quantizer.load_state_dict(own)

    @torch.no_grad()
    def _calibrate(self, model: nn.Module, plan: Plan) -> None:
        settings, quantizers = self.settings, self._quantizers
        if settings.method in ("dorefa", "bnn"):
            return
        if settings.bias_correction:
            self._correct_biases(model, plan)
        activations = {place: quantizers[place] for place in plan.activations}
        with torch.enable_grad():
            if settings.method == "lsq":
                found = calibration.lsq_activations(self.evaluator, activations, settings.calibration_steps)
            else:
                # LSQ+ begins with the affine range of least error (section 4.1).
                mse = settings.observer.model_copy(update={"name": "mse"})
                own = {
                    place: mse if settings.method == "lsq_plus" else at.settings.observer or settings.observer
                    for place, at in plan.activations.items()
                }
                pairs = {place: (quantizer, own[place]) for place, quantizer in activations.items()}
                found = calibration.activation_ranges(self.evaluator, pairs, settings.calibration_steps)
        for place, (scale, zero_point) in found.items():
            quantizers[place].set_parameters(scale, zero_point)
        self._follow_weights(model, plan, first=True)

    @torch.no_grad()
    def _correct_biases(self, model: nn.Module, plan: Plan) -> None:
        self._follow_weights(model, plan, first=True)
        layers: dict[str, tuple[nn.Module, FakeQuantizer, int]] = {}
        behind = {weight.module: weight.batch_norm for weight in plan.weights}
        without: list[str] = []
        for weight in plan.weights:
            module = model.get_submodule(weight.module)
            if weight.parameter != "weight" or isinstance(module, nn.Embedding):
                continue
            if getattr(module, "bias", None) is None and behind[weight.module] is None:
                without.append(weight.module)
                continue
            axis = 1 if isinstance(module, CONVOLUTIONS) else -1
            layers[weight.module] = (module, self._quantizers[weight.place], axis)
        if without:
            self._listener(Note(f"no bias that could be corrected: {', '.join(without)}"))
        with torch.enable_grad():
            shifts = calibration.bias_corrections(self.evaluator, layers, self.settings.calibration_steps)
        for name, shift in shifts.items():
            corrected = getattr(model.get_submodule(name), "bias", None)
            if corrected is None:
                # A batch norm subtracts its mean from what arrives: a smaller mean is a larger bias before it.
                corrected, shift = model.get_submodule(behind[name] or "").running_mean, -shift
                assert isinstance(corrected, Tensor)
            self._corrected.append((corrected.detach(), corrected.detach().clone()))
            corrected += shift.to(corrected)

    # --------------------------------------------------------------------------------------------------------- training

    def _compilation(self, model: nn.Module) -> Compilation:
        elements, device = 0, device_of(model)
        if device.type == "cpu" and self.settings.kernel == "auto":
            args, kwargs = self.evaluator.example_inputs()
            elements = elements_per_step(model, self._quantizers.values(), args, kwargs)
        return Compilation(self.settings.kernel, elements, device, self._listener)

    def _train(
        self, model: nn.Module, plan: Plan, max_steps: int | None, max_epochs: int | None, compilation: Compilation
    ) -> None:
        bits = self.settings.gradient_bits
        gradients = None if bits is None else GradientQuantizer(bits, seed=distributed.rank())

        def after_step(event: StepEvent) -> None:
            commit([q.observer for q in self._quantizers.values() if q.observer is not None and q.observing])
            self._follow_values()
            self._follow_weights(model, plan)
            self._step = event.step
            self._switch(event.step)
            if gradients is not None:
                gradients.begin(event.step)
            compilation.after_step(event.step - begun)

        def before_evaluate(_: nn.Module) -> None:
            self._follow_weights(model, plan)

        begun = self._step
        compilation.begin(None if max_steps is None else max_steps - begun)
        handles: list[Handle] = [
            self.evaluator.after_step(after_step),
            self.evaluator.before_evaluate(before_evaluate),
        ]
        with self._frozen_batch_norms(model), _quantized_gradients(model, plan, gradients, self._step):
            try:
                self.evaluator.train(max_steps=max_steps, max_epochs=max_epochs)
            finally:
                for handle in handles:
                    handle.remove()

    def _switch(self, step: int) -> None:
        """The switches after `step` optimizer steps."""
        schedule = self.settings.schedule
        simulating = not self.settings.trains or step >= schedule.simulate_from
        until = schedule.observe_until
        observing = self.settings.trains and step >= schedule.observe_from and (until is None or step < until)
        for quantizer in self._quantizers.values():
            # A switch that is written makes the next forward wait for the device.
            if quantizer.simulating != simulating:
                quantizer.simulating = simulating
            if quantizer.observer is not None and quantizer.observing != observing:
                quantizer.observing = observing

    @torch.no_grad()
    def _follow_values(self) -> None:
        _set_to_ranges(
            (quantizer, (quantizer.observer.low, quantizer.observer.high))
            for quantizer in self._quantizers.values()
            if quantizer.observer is not None and quantizer.observing
        )

    @torch.no_grad()
    def _follow_weights(self, model: nn.Module, plan: Plan, *, first: bool = False) -> None:
        """Weights' ranges are those of the weights as they are; learned scales only begin there."""
        method = self.settings.method
        if method == "bnn":
            for weight in plan.weights:
                _parameter(model, weight).clamp_(-1, 1)
        if method != "observed" and not (first and method in ("lsq", "lsq_plus")):
            return
        ranges: list[tuple[FakeQuantizer, Range]] = []
        for weight in plan.weights:
            quantizer = self._quantizers[weight.place]
            value = _parameter(model, weight).detach()
            if quantizer.batch_norm:
                value = value * fold_factor(quantizer.batch_norm[0], value)
            observer = (weight.settings.observer or self.settings.weight_observer).name
            observer = observer if observer == "mse" else "min_max"
            if method == "observed":
                ranges.append((quantizer, calibration.weight_range(value, quantizer.scheme, observer)))
            else:
                quantizer.set_parameters(*calibration.weight_parameters(value, quantizer.scheme, method))
        _set_to_ranges(ranges)

    @contextmanager
    def _frozen_batch_norms(self, model: nn.Module) -> Iterator[None]:
        """Within the context batch norms run in evaluation mode from the schedule's step on."""
        at = self.settings.schedule.freeze_batch_norm_at

        def freeze(module: nn.Module, args: Any) -> None:
            if at is not None and self._step >= at:
                module.training = False

        norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)] if at is not None else []
        handles = [module.register_forward_pre_hook(freeze) for module in norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ------------------------------------------------------------------------------------------------------------ after

    def _parameters(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for place, quantizer in self._quantizers.items():
            scale, zero_point = quantizer.quantization_parameters()
            found |= {f"{place}.scale": scale, f"{place}.zero_point": zero_point}
        return found

    def _result(self, plan: Plan) -> QuantizationResult:
        tensors: dict[str, QuantizedTensor] = {}
        signs = tuple(p for p, quantizer in self._quantizers.items() if isinstance(quantizer, BinaryActivations))
        for place, quantizer in self._quantizers.items():
            if place in signs:
                continue
            scale, zero_point = (value.detach().cpu().clone() for value in quantizer.quantization_parameters())
            tensors[place] = QuantizedTensor(quantizer.scheme, scale, zero_point)
        folded = {
            weight.place: weight.batch_norm
            for weight in plan.weights
            if weight.batch_norm is not None and self._quantizers[weight.place].batch_norm
        }
        return QuantizationResult(tensors, tuple(plan.unquantized), folded, signs)

    @torch.no_grad()
    def _leave_weights(self, model: nn.Module, plan: Plan) -> None:
        """Methods that change weights before they round them leave them as they were simulated."""
        for weight in plan.weights:
            quantizer = self._quantizers[weight.place]
            if isinstance(quantizer, (DoReFaWeights, BinaryWeights)):
                parameter = _parameter(model, weight)
                parameter.copy_(quantizer.simulate(parameter.detach()))


def _set_to_ranges(ranges: Iterable[tuple[FakeQuantizer, Range]]) -> None:
    """Scale and zero point of each quantizer by its range, all of one scheme at once."""
    groups: dict[tuple[Scheme, torch.device], list[tuple[FakeQuantizer, Range]]] = defaultdict(list)
    for quantizer, found in ranges:
        groups[quantizer.scheme, found[0].device].append((quantizer, found))
    for (scheme, _), members in groups.items():
        parameters = scheme.parameters_of_all([found for _, found in members])
        for (quantizer, _), (scale, zero_point) in zip(members, parameters, strict=True):
            quantizer.set_parameters(scale, zero_point)


def _parameter(model: nn.Module, weight: WeightPlace) -> nn.Parameter:
    return model.get_submodule(weight.module).get_parameter(weight.parameter)


@contextmanager
def _quantized_gradients(model: nn.Module, plan: Plan, quantize: GradientQuantizer | None, step: int) -> Iterator[None]:
    """Within the context the gradients that reach the quantized layers' outputs are quantized (DoReFa)."""
    handles: list[Any] = []
    if quantize is not None:
        quantize.begin(step)

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            return quantize(output) if isinstance(output, Tensor) and output.requires_grad else output

        layers = {weight.module for weight in plan.weights}
        handles = [model.get_submodule(name).register_forward_hook(hook) for name in sorted(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
