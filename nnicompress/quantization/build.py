"""From a plan to fake quantizers: which class simulates which place, by the method."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from nnicompress.evaluators.training_step import device_of
from nnicompress.quantization.fake_quantizer import BiasQuantizer, FakeQuantizer
from nnicompress.quantization.fixed import BinaryActivations, BinaryWeights, DoReFaActivations, DoReFaWeights
from nnicompress.quantization.learned import LearnedQuantizer
from nnicompress.quantization.observers import RangeObserver
from nnicompress.quantization.plan import ActivationPlace, Plan, WeightPlace
from nnicompress.quantization.settings import TRAINABLE_OBSERVERS, QuantizerSettings


def build_quantizers(model: nn.Module, plan: Plan, settings: QuantizerSettings) -> dict[str, FakeQuantizer]:
    """The fake quantizers of a plan, by place, on the model's device; none simulates or observes yet."""
    found: dict[str, FakeQuantizer] = {}
    modules = dict(model.named_modules())
    for activation in plan.activations.values():
        found[activation.place] = _of_activation(activation, settings)
    for weight in plan.weights:
        quantizer = found[weight.place] = _of_weight(model, weight, settings)
        folds = (
            settings.fold_batch_norm and weight.batch_norm is not None and weight.scheme.granularity.axis in (None, 0)
        )
        if folds and weight.batch_norm is not None:
            quantizer.batch_norm = (modules[weight.batch_norm],)
    for bias in plan.biases if settings.method in ("observed", "lsq", "lsq_plus") else ():
        sources = found[bias.input], found[f"{bias.module}/weight"]
        scale_shape = tuple(sources[1].scale.shape)
        found[f"{bias.module}/bias"] = BiasQuantizer(scale_shape, sources)
    device = device_of(model)
    return {place: quantizer.to(device) for place, quantizer in found.items()}


def biases(quantizers: Mapping[str, FakeQuantizer]) -> dict[str, BiasQuantizer]:
    """Those of biases."""
    return {place: q for place, q in quantizers.items() if isinstance(q, BiasQuantizer)}


def learned(quantizers: Mapping[str, FakeQuantizer]) -> dict[str, LearnedQuantizer]:
    """Those whose scale is trained."""
    return {place: q for place, q in quantizers.items() if isinstance(q, LearnedQuantizer)}


def _of_activation(place: ActivationPlace, settings: QuantizerSettings) -> FakeQuantizer:
    if settings.method == "dorefa":
        return DoReFaActivations(place.scheme.bits)
    if settings.method == "bnn":
        return BinaryActivations()
    if settings.method in ("lsq", "lsq_plus"):
        zero_point = settings.method == "lsq_plus" and not place.scheme.symmetric
        return LearnedQuantizer(place.scheme, place.shape, learn_zero_point=zero_point)
    quantizer = FakeQuantizer(place.scheme, place.shape)
    observer = place.settings.observer or settings.observer
    if settings.trains and observer.name in TRAINABLE_OBSERVERS:
        momentum = observer.momentum if observer.name == "moving_average" else None
        quantizer.observer = RangeObserver(place.scheme, quantizer.scale.shape, momentum)
    return quantizer


def _of_weight(model: nn.Module, place: WeightPlace, settings: QuantizerSettings) -> FakeQuantizer:
    if settings.method == "dorefa":
        return DoReFaWeights(place.scheme.bits)
    if settings.method == "bnn":
        return BinaryWeights()
    shape = model.get_submodule(place.module).get_parameter(place.parameter).shape
    if settings.method in ("lsq", "lsq_plus"):
        return LearnedQuantizer(place.scheme, shape, batched=False)
    return FakeQuantizer(place.scheme, shape)
