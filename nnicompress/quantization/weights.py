"""The weights of a plan beside their fake quantizers: where ranges begin, how they follow, what is left at the end."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nnicompress.quantization.attach import Attached
from nnicompress.quantization.fake_quantizer import FakeQuantizer, set_to_ranges
from nnicompress.quantization.fixed import BinaryWeights, DoReFaWeights
from nnicompress.quantization.learned import lsq_plus_weight_scale, lsq_scale
from nnicompress.quantization.parameters import fold_factor
from nnicompress.quantization.plan import Plan, WeightPlace
from nnicompress.quantization.ranges import Range, extremes, grouped, least_squares, scales_in_place
from nnicompress.quantization.scheme import Scheme
from nnicompress.quantization.settings import QuantizerSettings


class QuantizedWeights:
    """The weights that a plan quantizes, each with its fake quantizer, for as long as those are in the model."""

    def __init__(self, attached: Attached, plan: Plan, settings: QuantizerSettings) -> None:
        self._model, self._settings = attached.model, settings
        self._places = [(weight, attached.quantizers[weight.place]) for weight in plan.weights]

    @property
    def layers(self) -> list[nn.Module]:
        """The modules that they are weights of, each once."""
        names = {weight.module for weight, _ in self._places}
        return [self._model.get_submodule(name) for name in sorted(names)]

    @torch.no_grad()
    def begin(self) -> None:
        """First ranges, or the scales that learning begins with, by the weights as they are."""
        method = self._settings.method
        if method == "observed":
            self._observe()
        elif method in ("lsq", "lsq_plus"):
            for _, quantizer, value in self._values():
                quantizer.set_parameters(*_first_parameters(value, quantizer.scheme, method))

    @torch.no_grad()
    def follow(self) -> None:
        """The weights may have changed: ranges become theirs, and binary ones are brought back to [-1, 1]."""
        method = self._settings.method
        if method == "observed":
            self._observe()
        elif method == "bnn":
            for weight, _ in self._places:
                self._parameter(weight).clamp_(-1, 1)

    @torch.no_grad()
    def leave_as_simulated(self) -> None:
        """Methods that change weights before they round them leave them so in the model."""
        for weight, quantizer in self._places:
            if isinstance(quantizer, (DoReFaWeights, BinaryWeights)):
                parameter = self._parameter(weight)
                parameter.copy_(quantizer.simulate(parameter.detach()))

    def _observe(self) -> None:
        ranges: list[tuple[FakeQuantizer, Range]] = []
        for weight, quantizer, value in self._values():
            observer = weight.settings.observer or self._settings.weight_observer
            find = least_squares if observer.name == "mse" else extremes
            ranges.append((quantizer, find(value, quantizer.scheme)))
        set_to_ranges(ranges)

    def _values(self) -> Iterator[tuple[WeightPlace, FakeQuantizer, Tensor]]:
        """Each weight as it is quantized: with its batch norm folded in, where it is."""
        for weight, quantizer in self._places:
            value = self._parameter(weight).detach()
            if quantizer.batch_norm:
                value = value * fold_factor(quantizer.batch_norm[0], value)
            yield weight, quantizer, value

    def _parameter(self, weight: WeightPlace) -> nn.Parameter:
        return self._model.get_submodule(weight.module).get_parameter(weight.parameter)


def _first_parameters(weight: Tensor, scheme: Scheme, method: str) -> tuple[Tensor, Tensor]:
    """The scale that LSQ and LSQ+ begin a weight with, and its zero point."""
    groups, shape = grouped(weight.double(), scheme)
    if method == "lsq":
        scale = lsq_scale(groups.abs().mean(dim=1), scheme.quant_max - scheme.middle)
    else:
        scale = lsq_plus_weight_scale(groups.mean(dim=1), groups.std(dim=1, correction=0), scheme.bits)
    scale = scales_in_place(scale, scheme, shape)
    return scale, torch.full(shape, scheme.middle, dtype=torch.int32, device=scale.device)
