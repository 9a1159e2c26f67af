"""Calibration: finds the ranges and first scales of activations on batches of the training data.

It comes before anything is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nnicompress.errors import JobError
from nnicompress.evaluators.contract import Evaluator, StepEvent
from nnicompress.evaluators.preserve import in_evaluation
from nnicompress.quantization.fake_quantizer import FakeQuantizer, Watcher
from nnicompress.quantization.learned import lsq_scale
from nnicompress.quantization.observers import Histogram, Magnitudes, RangeObserver, commit
from nnicompress.quantization.plan import Plan
from nnicompress.quantization.ranges import Range, histogram_least_divergence, histogram_least_squares, percentile
from nnicompress.quantization.settings import ObserverSettings, QuantizerSettings

Parameters = tuple[Tensor, Tensor]
"""Scale and zero point."""


class _Plain:
    """An observer that is no child of a fake quantizer: an evaluator puts all buffers of a model back."""

    def __init__(self, observer: RangeObserver) -> None:
        self.observer = observer

    def collect(self, x: Tensor) -> None:
        self.observer.collect(x)


def calibrate_activations(
    evaluator: Evaluator, plan: Plan, quantizers: Mapping[str, FakeQuantizer], settings: QuantizerSettings
) -> None:
    """Give each activation's quantizer the scale and zero point that its values begin with, by the settings' method.

    The methods are `observed`, `lsq` and `lsq_plus`. In several processes all get the same.

    Raises:
        JobError: an activation was not seen, or has values without a range.
    """
    activations = {place: quantizers[place] for place in plan.activations}
    if settings.method == "lsq":
        found = _mean_magnitudes(evaluator, activations, settings.calibration_steps)
    else:
        # LSQ+ begins with the affine range of least error (section 4.1).
        mse = settings.observer.model_copy(update={"name": "mse"})
        observers = {
            place: mse if settings.method == "lsq_plus" else activation.settings.observer or settings.observer
            for place, activation in plan.activations.items()
        }
        pairs = {place: (quantizer, observers[place]) for place, quantizer in activations.items()}
        found = _observed(evaluator, pairs, settings.calibration_steps)
    for place, parameters in found.items():
        quantizers[place].set_parameters(*parameters)


def require_seen(place: str, seen: bool) -> None:
    """
    Raises:
        JobError: the calibration's batches showed nothing there.
    """
    if not seen:
        raise JobError(
            f"the calibration found no numbers at {place}: its forward takes another way, training_step doesn't call "
            "the model, or the values are NaN; leave it out with exclude_op_names"
        )


def _require_range(place: str, low: Tensor, high: Tensor) -> None:
    """
    Raises:
        JobError: nothing was seen there, or values without a range.
    """
    require_seen(place, not bool((low == torch.inf).any()))
    if not bool(torch.isfinite(torch.stack([low, high])).all()):
        raise JobError(f"{place} has no range: the calibration found infinity or NaN among its values")


def _observed(
    evaluator: Evaluator, quantizers: Mapping[str, tuple[FakeQuantizer, ObserverSettings]], num_batches: int
) -> dict[str, Parameters]:
    """Scale and zero point of each activation by its observer, over `num_batches` of the training data.

    Observers that need a histogram see the batches twice, first for its ends.
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


def _histogram_ranges(
    evaluator: Evaluator,
    quantizers: Mapping[str, tuple[FakeQuantizer, ObserverSettings]],
    ranges: Mapping[str, Range],
    num_batches: int,
) -> dict[str, Range]:
    wanted = {place: pair for place, pair in quantizers.items() if pair[1].name in ("histogram", "percentile", "mse")}
    if not wanted:
        return {}
    histograms = {place: Histogram(*ranges[place], bins=settings.bins) for place, (_, settings) in wanted.items()}
    watched: dict[FakeQuantizer, Watcher] = {wanted[place][0]: histogram for place, histogram in histograms.items()}
    _watch(evaluator, watched, num_batches, lambda: None)
    found: dict[str, Range] = {}
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


def _mean_magnitudes(
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
        # The loop's backward passes need gradients, whatever mode the caller is in.
        with torch.enable_grad(), in_evaluation(evaluator.model, training=FakeQuantizer):
            evaluator.iterate(num_batches)
    finally:
        handle.remove()
        for quantizer in watchers:
            quantizer.watcher, quantizer.observing = None, False
