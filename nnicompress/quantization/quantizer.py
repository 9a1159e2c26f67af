"""The quantizer: scheme x (observer or learned scale) x schedule, around the user's training.

record one forward, place fake quantizers          record.py, placement.py, attach.py
first ranges and scales                            (fixed ones need none, nor does a training that is resumed)
    of the weights                                 weights.py
    biases, shifted by what they do to outputs     bias_correction.py
    of the activations, on batches                 calibration.py
train, simulated                                   simulation.py (not where `trains` is false)
    after each step: ranges follow values and weights, the schedule switches
take everything out again
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnicompress import exchange
from nnicompress.errors import ConfigError, UserError
from nnicompress.evaluators.contract import Evaluator, Handle
from nnicompress.events import Listener, Note, silent
from nnicompress.quantization.attach import Attached
from nnicompress.quantization.bias_correction import BiasCorrection
from nnicompress.quantization.build import build_quantizers, learned
from nnicompress.quantization.calibration import calibrate_activations
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.fixed import BinaryActivations
from nnicompress.quantization.modes import refuse_checkpointed, training_numbers
from nnicompress.quantization.placement import make_plan
from nnicompress.quantization.plan import Plan
from nnicompress.quantization.record import record
from nnicompress.quantization.result import QuantizationResult, QuantizedTensor
from nnicompress.quantization.settings import QuantizerSettings
from nnicompress.quantization.simulation import Simulation
from nnicompress.quantization.weights import QuantizedWeights

Targets = Sequence[Mapping[str, Any]]
_FIXED = ("dorefa", "bnn")
"""Methods that find no ranges: their scales follow from the number of bits."""
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
        self._simulation = Simulation({}, settings)
        self._resume: Mapping[str, Any] | None = None

    @staticmethod
    def requirements(settings: QuantizerSettings) -> tuple[tuple[str, str], ...]:
        """The capabilities that a quantizer with these settings asks of an evaluator, each with what it is for."""
        needs = [("example_inputs", "to follow the model's values through one forward")]
        if settings.method not in _FIXED:
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
            plan, attached = self._attached(model)
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
        self._check_length(max_steps, max_epochs)
        with self.evaluator.bound(model):
            if alongside is not None:
                alongside(self.evaluator)
            plan, attached = self._attached(model)
            weights = QuantizedWeights(attached, plan, self.settings)
            correction = BiasCorrection(attached, plan, self._listener)
            self._simulation = Simulation(attached.quantizers, self.settings)
            try:
                self._add_learned()
                self._begin(plan, weights, correction)
                if self.settings.trains:
                    self._simulation.train(
                        self.evaluator, weights, self._listener, max_steps=max_steps, max_epochs=max_epochs
                    )
                exchange.check_equal("the ranges", _parameters(attached.quantizers), _UNEQUAL_RANGES)
                result = _result(plan, attached.quantizers)
                weights.leave_as_simulated()
            except BaseException:
                correction.undo()
                raise
            finally:
                attached.remove()
        self._tell(result)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Ranges, scales, observers and switches of the training in progress; see `load_state_dict`."""
        return self._simulation.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `compress` goes on with the training from there, without calibrating again.

        The model's weights and the evaluator's own state are the caller's to restore.
        """
        self._resume = state

    def _require(self) -> None:
        for capability, why in self.requirements(self.settings):
            self.evaluator.require(capability, by=f"the {self.settings.method} quantizer", why=why)

    def _check_length(self, max_steps: int | None, max_epochs: int | None) -> None:
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

    def _attached(self, model: nn.Module) -> tuple[Plan, Attached]:
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
        return plan, attached

    def _add_learned(self) -> None:
        """Before the calibration too: an evaluator wants to know of every trainable parameter of its model."""
        trained = [
            (f"{place}.{name}", parameter)
            for place, quantizer in learned(self._simulation.quantizers).items()
            for name, parameter in quantizer.learned().items()
        ]
        if trained:
            self.evaluator.add_parameters(trained)  # forgotten when the model is no longer bound

    def _begin(self, plan: Plan, weights: QuantizedWeights, correction: BiasCorrection) -> None:
        """Ranges and scales to begin with: those of the training that is resumed, or of a calibration."""
        settings, simulation = self.settings, self._simulation
        state, self._resume = self._resume, None
        if state is not None:
            simulation.load_state_dict(state)
            return
        if settings.method not in _FIXED:
            weights.begin()
            if settings.bias_correction:
                correction.apply(self.evaluator, settings.calibration_steps)
            calibrate_activations(self.evaluator, plan, simulation.quantizers, settings)
        simulation.switch()

    def _tell(self, result: QuantizationResult) -> None:
        simulate_from, steps = self.settings.schedule.simulate_from, self._simulation.step
        if self.settings.trains and simulate_from >= steps:
            self._listener(
                Note(
                    f"nothing was simulated: simulate_from is {simulate_from}, and the training ended after "
                    f"{steps} steps",
                    warning=True,
                )
            )
        self._listener(Note(result.summary))
        if result.unquantized:
            more = f" (and {len(result.unquantized) - 5} more)" if len(result.unquantized) > 5 else ""
            self._listener(Note(f"left in float: {'; '.join(result.unquantized[:5])}{more}", warning=True))


def _parameters(quantizers: Mapping[str, FakeQuantizer]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for place, quantizer in quantizers.items():
        scale, zero_point = quantizer.quantization_parameters()
        found |= {f"{place}.scale": scale, f"{place}.zero_point": zero_point}
    return found


def _result(plan: Plan, quantizers: Mapping[str, FakeQuantizer]) -> QuantizationResult:
    tensors: dict[str, QuantizedTensor] = {}
    signs = tuple(place for place, quantizer in quantizers.items() if isinstance(quantizer, BinaryActivations))
    for place, quantizer in quantizers.items():
        if place in signs:
            continue
        scale, zero_point = (value.detach().cpu().clone() for value in quantizer.quantization_parameters())
        tensors[place] = QuantizedTensor(quantizer.scheme, scale, zero_point)
    folded = {
        weight.place: weight.batch_norm
        for weight in plan.weights
        if weight.batch_norm is not None and quantizers[weight.place].batch_norm
    }
    return QuantizationResult(tensors, tuple(plan.unquantized), folded, signs)
