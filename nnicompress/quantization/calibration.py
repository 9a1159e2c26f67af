"""Calibration: finds the ranges and first scales on batches of the training data, before anything is simulated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress import exchange
from nnicompress.errors import JobError
from nnicompress.evaluators.contract import Evaluator, StepEvent
from nnicompress.evaluators.preserve import in_evaluation
from nnicompress.quantization.fake_quantizer import FakeQuantizer, Watcher
from nnicompress.quantization.learned import lsq_plus_weight_scale, lsq_scale
from nnicompress.quantization.observers import Histogram, Magnitudes, RangeObserver, commit
from nnicompress.quantization.ranges import (
    extremes,
    grouped,
    histogram_least_divergence,
    histogram_least_squares,
    least_squares,
    percentile,
    scales_in_place,
)
from nnicompress.quantization.scheme import Scheme
from nnicompress.quantization.settings import ObserverSettings

Parameters = tuple[Tensor, Tensor]


class _Plain:
    """An observer that is no child of a fake quantizer: an evaluator puts all buffers of a model back."""

    def __init__(self, observer: RangeObserver) -> None:
        self.observer = observer

    def collect(self, x: Tensor) -> None:
        self.observer.collect(x)


def activation_ranges(
    evaluator: Evaluator, quantizers: Mapping[str, tuple[FakeQuantizer, ObserverSettings]], num_batches: int
) -> dict[str, Parameters]:
    """Scale and zero point of each activation by its observer, over `num_batches` of the training data.

    Observers that need a histogram see the batches twice, first for its ends. In several processes all get the same.
    """
    observers: dict[str, RangeObserver] = {}
    for place, (quantizer, settings) in quantizers.items():
        momentum = settings.momentum if settings.name == "moving_average" else None
        observer = RangeObserver(quantizer.scheme, quantizer.scale.shape, momentum)
        observers[place] = observer.to(quantizer.scale.device)
    watched = {quantizers[place][0]: _Plain(observer) for place, observer in observers.items()}
    _watch(evaluator, watched, num_batches, lambda: commit(list(observers.values())))
    for place, observer in observers.items():
        _require_range(place, observer.low, observer.high)
        own = quantizers[place][0].observer
        if own is not None:
            own.low.copy_(observer.low)
            own.high.copy_(observer.high)
    ranges = {place: (observer.low, observer.high) for place, observer in observers.items()}
    ranges |= _histogram_ranges(evaluator, quantizers, ranges, num_batches)
    return {place: quantizers[place][0].scheme.parameters(*found) for place, found in ranges.items()}


def _require_range(place: str, low: Tensor, high: Tensor) -> None:
    """
    Raises:
        JobError: nothing was seen there, or values without a range.
    """
    if bool((low == torch.inf).any()):
        raise JobError(
            f"the calibration found no numbers at {place}: its forward takes another way, training_step doesn't call "
            "the model, or the values are NaN; leave it out with exclude_op_names"
        )
    if not bool(torch.isfinite(torch.stack([low, high])).all()):
        raise JobError(f"{place} has no range: the calibration found infinity or NaN among its values")


def _histogram_ranges(
    evaluator: Evaluator,
    quantizers: Mapping[str, tuple[FakeQuantizer, ObserverSettings]],
    ranges: Mapping[str, tuple[Tensor, Tensor]],
    num_batches: int,
) -> dict[str, tuple[Tensor, Tensor]]:
    wanted = {place: pair for place, pair in quantizers.items() if pair[1].name in ("histogram", "percentile", "mse")}
    if not wanted:
        return {}
    histograms = {place: Histogram(*ranges[place], bins=settings.bins) for place, (_, settings) in wanted.items()}
    watched: dict[FakeQuantizer, Watcher] = {wanted[place][0]: histogram for place, histogram in histograms.items()}
    _watch(evaluator, watched, num_batches, lambda: None)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for place, histogram in histograms.items():
        histogram.reduce()
        quantizer, settings = wanted[place]
        counts, low, high = histogram.counts, histogram.low, histogram.high
        if settings.name == "percentile":
            found[place] = percentile(counts, low, high, settings.percentile)
        elif settings.name == "mse":
            found[place] = histogram_least_squares(counts, low, high, quantizer.scheme)
        else:
            found[place] = histogram_least_divergence(counts, low, high)
    return found


def lsq_activations(
    evaluator: Evaluator, quantizers: Mapping[str, FakeQuantizer], num_batches: int
) -> dict[str, Parameters]:
    """LSQ's first scales, 2 * mean|x| / sqrt(steps above zero).

    Unsigned integers stand for values that may be negative by a zero point in their middle, and by zero point 0 for
    others: the zero point is not learned.
    """
    magnitudes = {place: Magnitudes() for place in quantizers}
    watched: dict[FakeQuantizer, Watcher] = {quantizers[place]: magnitude for place, magnitude in magnitudes.items()}
    _watch(evaluator, watched, num_batches, lambda: None)
    found: dict[str, Parameters] = {}
    for place, magnitude in magnitudes.items():
        quantizer = quantizers[place]
        scheme, device = quantizer.scheme, quantizer.scale.device
        magnitude.reduce(device)
        if not math.isfinite(magnitude.mean_absolute):
            low = magnitude.low if magnitude.sums[1] == 0 else torch.tensor(torch.nan)
            _require_range(place, low, low)
        negative = scheme.symmetric or float(magnitude.low) < 0
        zero = scheme.middle if negative else max(0, scheme.quant_min)
        scale = lsq_scale(torch.tensor(magnitude.mean_absolute), scheme.quant_max - zero)
        shape = quantizer.scale.shape
        found[place] = (
            scale.to(device).expand(shape),
            torch.full(shape, zero, dtype=torch.int32, device=device),
        )
    return found


def weight_range(weight: Tensor, scheme: Scheme, observer: str) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of each group of a weight, or the range of least squared error."""
    return (least_squares if observer == "mse" else extremes)(weight.detach(), scheme)


def weight_parameters(weight: Tensor, scheme: Scheme, method: str) -> Parameters:
    """The scale that LSQ and LSQ+ begin a weight with, and its zero point."""
    weight = weight.detach()
    groups, shape = grouped(weight.double(), scheme)
    if method == "lsq":
        scale = lsq_scale(groups.abs().mean(dim=1), scheme.quant_max - scheme.middle)
    else:
        scale = lsq_plus_weight_scale(groups.mean(dim=1), groups.std(dim=1, correction=0), scheme.bits)
    scale = scales_in_place(scale, scheme, shape)
    return scale, torch.full(shape, scheme.middle, dtype=torch.int32, device=scale.device)


def bias_corrections(
    evaluator: Evaluator, layers: Mapping[str, tuple[nn.Module, FakeQuantizer, int]], num_batches: int
) -> dict[str, Tensor]:
    """By layer: the mean, for each output channel, of its output less the one that its quantized weight makes.

    Each layer is looked at on the float model's values (Nagel et al. 2019, section 4.2, the empirical way). `layers`
    gives the module, its weight's quantizer and the output's dimension of channels.
    """
    sums: dict[str, list[Tensor]] = {name: [] for name in layers}

    def compare(name: str) -> Callable[..., None]:
        module, quantizer, axis = layers[name]

        @torch.no_grad()
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            quantizer.simulating = True
            error = output - module.forward(*args, **kwargs)
            quantizer.simulating = False
            channels = error.movedim(axis, 0).flatten(1).double()
            sums[name].append(torch.cat([channels.sum(dim=1), channels.new_tensor([channels.shape[1]])]))

        return hook

    handles = [module.register_forward_hook(compare(name), with_kwargs=True) for name, (module, _, _) in layers.items()]
    try:
        with in_evaluation(evaluator.model, training=FakeQuantizer):
            evaluator.iterate(num_batches)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, Tensor] = {}
    for name, parts in sums.items():
        if not parts:
            _require_range(name, *[torch.tensor(torch.inf)] * 2)
        total = exchange.total(torch.stack(parts).sum(dim=0))
        found[name] = (total[:-1] / total[-1]).float()
    return found


def _watch(
    evaluator: Evaluator, watchers: Mapping[FakeQuantizer, Watcher], num_batches: int, each: Callable[[], None]
) -> None:
    """Show batches of the training data to `watchers`, in evaluation mode; `each` is called after every step's.

    Fake quantizers are in training mode, in which they observe.
    """

    def after_batch(event: StepEvent) -> None:
        each()

    for quantizer, watcher in watchers.items():
        quantizer.watcher, quantizer.observing, quantizer.simulating = watcher, True, False
    handle = evaluator.before_step(after_batch)
    try:
        with in_evaluation(evaluator.model, training=FakeQuantizer):
            evaluator.iterate(num_batches)
    finally:
        handle.remove()
        for quantizer in watchers:
            quantizer.watcher, quantizer.observing = None, False
