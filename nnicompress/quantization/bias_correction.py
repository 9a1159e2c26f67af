"""Bias correction: quantized weights shift the mean of a layer's output, and its bias takes that back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress import exchange
from nnicompress.evaluators.contract import Evaluator
from nnicompress.evaluators.preserve import in_evaluation
from nnicompress.events import Listener, Note
from nnicompress.quantization.attach import Attached
from nnicompress.quantization.calibration import require_seen
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.modules import CONVOLUTIONS
from nnicompress.quantization.plan import Plan


@dataclass(frozen=True, eq=False)
class _Layer:
    """One whose output can be shifted, with the quantizer of its weight."""

    module: nn.Module
    quantizer: FakeQuantizer
    axis: int
    """The output's dimension of channels."""
    batch_norm: nn.Module | None
    """Behind a layer without a bias: the one whose running mean is shifted in its place."""


class BiasCorrection:
    """Shifts biases by the error in the mean of each output channel (Nagel et al. 2019, section 4.2, empirically).

    The shifted biases stay in the model; `undo` is for a quantization that comes to nothing.
    """

    def __init__(self, attached: Attached, plan: Plan, listener: Listener) -> None:
        self._model, self._quantizers, self._plan, self._listener = attached.model, attached.quantizers, plan, listener
        self._changed: list[tuple[Tensor, Tensor]] = []
        """Tensors, each with what it held before."""

    def apply(self, evaluator: Evaluator, num_batches: int) -> None:
        """Shift the biases by what `num_batches` of the training data show; weights must have their ranges.

        Raises:
            JobError: no batch reached a layer.
        """
        layers = self._layers()
        for name, shift in _mean_errors(evaluator, layers, num_batches).items():
            module, batch_norm = layers[name].module, layers[name].batch_norm
            # A batch norm subtracts its mean from what arrives: a smaller mean is a larger bias before it.
            bias, shift = (module.bias, shift) if batch_norm is None else (batch_norm.running_mean, -shift)
            assert isinstance(bias, Tensor)
            bias = bias.detach()
            self._changed.append((bias, bias.clone()))
            bias += shift.to(bias)

    def undo(self) -> None:
        """Put every bias back, also of a correction that was interrupted."""
        while self._changed:
            bias, before = self._changed.pop()
            bias.copy_(before)

    def _layers(self) -> dict[str, _Layer]:
        """Those that have something to shift, by name; tells which have not."""
        found: dict[str, _Layer] = {}
        without: list[str] = []
        for weight in self._plan.weights:
            module = self._model.get_submodule(weight.module)
            if weight.parameter != "weight" or isinstance(module, nn.Embedding):
                continue
            batch_norm = None
            if getattr(module, "bias", None) is None:
                if weight.batch_norm is None:
                    without.append(weight.module)
                    continue
                batch_norm = self._model.get_submodule(weight.batch_norm)
            axis = 1 if isinstance(module, CONVOLUTIONS) else -1
            found[weight.module] = _Layer(module, self._quantizers[weight.place], axis, batch_norm)
        if without:
            self._listener(Note(f"no bias that could be corrected: {', '.join(without)}"))
        return found


def _mean_errors(evaluator: Evaluator, layers: Mapping[str, _Layer], num_batches: int) -> dict[str, Tensor]:
    """By layer: the mean, for each output channel, of its output less the one that its quantized weight makes.

    Each layer is looked at on the float model's values.
    """
    sums: dict[str, list[Tensor]] = {name: [] for name in layers}

    def compare(name: str, layer: _Layer) -> Callable[..., None]:
        @torch.no_grad()
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            layer.quantizer.simulating = True
            error = output - layer.module.forward(*args, **kwargs)
            layer.quantizer.simulating = False
            channels = error.movedim(layer.axis, 0).flatten(1).double()
            sums[name].append(torch.cat([channels.sum(dim=1), channels.new_tensor([channels.shape[1]])]))

        return hook

    handles = [
        layer.module.register_forward_hook(compare(name, layer), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        # The loop's backward passes need gradients, whatever mode the caller is in.
        with torch.enable_grad(), in_evaluation(evaluator.model, training=FakeQuantizer):
            evaluator.iterate(num_batches)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, Tensor] = {}
    for name, parts in sums.items():
        require_seen(name, bool(parts))
        total = exchange.total(torch.stack(parts).sum(dim=0))
        found[name] = (total[:-1] / total[-1]).float()
    return found
