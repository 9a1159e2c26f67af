"""The simulation over a training: the schedule switches fake quantizers, and their ranges follow values and weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress import distributed
from nnicompress.errors import UserError
from nnicompress.evaluators.contract import Evaluator, Handle, StepEvent
from nnicompress.evaluators.training_step import device_of
from nnicompress.events import Listener
from nnicompress.quantization.compilation import Compilation, elements_per_step
from nnicompress.quantization.fake_quantizer import FakeQuantizer, set_to_ranges
from nnicompress.quantization.fixed import GradientQuantizer
from nnicompress.quantization.observers import commit
from nnicompress.quantization.placement import BATCH_NORMS
from nnicompress.quantization.settings import QuantizerSettings
from nnicompress.quantization.weights import QuantizedWeights


class Simulation:
    """The fake quantizers of a model, and how many optimizer steps they have seen of its training."""

    def __init__(self, quantizers: Mapping[str, FakeQuantizer], settings: QuantizerSettings) -> None:
        """`quantizers` by place."""
        self.quantizers, self.settings = quantizers, settings
        self.step = 0
        """Optimizer steps, with those before a training was cut off."""

    def switch(self) -> None:
        """Simulate and observe as the schedule says after `step` steps; where nothing is trained, simulate."""
        settings, schedule = self.settings, self.settings.schedule
        simulating = not settings.trains or self.step >= schedule.simulate_from
        until = schedule.observe_until
        observing = settings.trains and self.step >= schedule.observe_from and (until is None or self.step < until)
        for quantizer in self.quantizers.values():
            # A switch that is written makes the next forward wait for the device.
            if quantizer.simulating != simulating:
                quantizer.simulating = simulating
            if quantizer.observer is not None and quantizer.observing != observing:
                quantizer.observing = observing

    def train(
        self,
        evaluator: Evaluator,
        weights: QuantizedWeights,
        listener: Listener,
        *,
        max_steps: int | None,
        max_epochs: int | None,
    ) -> None:
        """Run the training of the bound model, which the quantizers are in, from `step` on."""
        begun = self.step
        bits = self.settings.gradient_bits
        gradients = None if bits is None else GradientQuantizer(bits, seed=distributed.rank())

        def after_step(event: StepEvent) -> None:
            self._follow_values()
            weights.follow()
            self.step = event.step
            self.switch()
            if gradients is not None:
                gradients.begin(event.step)
            compilation.after_step(event.step - begun)

        def before_evaluate(_: nn.Module) -> None:
            weights.follow()

        with (
            self._compilation(evaluator, listener) as compilation,
            self._frozen_batch_norms(evaluator.model),
            _quantized_gradients(weights.layers, gradients, begun),
        ):
            compilation.begin(None if max_steps is None else max_steps - begun)
            handles: list[Handle] = [evaluator.after_step(after_step), evaluator.before_evaluate(before_evaluate)]
            try:
                evaluator.train(max_steps=max_steps, max_epochs=max_epochs)
            finally:
                for handle in handles:
                    handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Ranges, scales, observers and switches of all quantizers, and the step that they are at."""
        tensors = {
            f"{place}:{name}": tensor.detach().clone()
            for place, quantizer in self.quantizers.items()
            for name, tensor in quantizer.state_dict().items()
        }
        return {"step": self.step, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            UserError: a quantizer is not in it.
        """
        self.step = int(state["step"])
        for place, quantizer in self.quantizers.items():
            own = {name: state["tensors"].get(f"{place}:{name}") for name in quantizer.state_dict()}
            if missing := [name for name, tensor in own.items() if tensor is None]:
                raise UserError(
                    f"the quantizer's state is for other settings or another model: no {place}:{missing[0]}"
                )
            quantizer.load_state_dict(own)

    @torch.no_grad()
    def _follow_values(self) -> None:
        """Observers take up what they saw in the step that is done, and ranges become theirs."""
        observing = [
            (quantizer, quantizer.observer)
            for quantizer in self.quantizers.values()
            if quantizer.observer is not None and quantizer.observing
        ]
        commit([observer for _, observer in observing])
        set_to_ranges((quantizer, (observer.low, observer.high)) for quantizer, observer in observing)

    def _compilation(self, evaluator: Evaluator, listener: Listener) -> Compilation:
        elements, device = 0, device_of(evaluator.model)
        if device.type == "cpu" and self.settings.kernel == "auto":
            args, kwargs = evaluator.example_inputs()
            elements = elements_per_step(evaluator.model, self.quantizers.values(), args, kwargs)
        return Compilation(self.settings.kernel, elements, device, listener)

    @contextmanager
    def _frozen_batch_norms(self, model: nn.Module) -> Iterator[None]:
        """Within the context batch norms run in evaluation mode from the schedule's step on."""
        at = self.settings.schedule.freeze_batch_norm_at

        def freeze(module: nn.Module, args: Any) -> None:
            if at is not None and self.step >= at:
                module.training = False

        norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)] if at is not None else []
        handles = [module.register_forward_pre_hook(freeze) for module in norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _quantized_gradients(layers: Iterable[nn.Module], quantize: GradientQuantizer | None, step: int) -> Iterator[None]:
    """Within the context the gradients that reach the outputs of `layers` are quantized, from `step` on (DoReFa)."""
    handles: list[Handle] = []
    if quantize is not None:
        quantize.begin(step)

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            return quantize(output) if isinstance(output, Tensor) and output.requires_grad else output

        handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
