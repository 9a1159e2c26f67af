"""`quantize`: find how to quantize each tensor, in training or by calibration, and make integers of the weights."""

from __future__ import annotations

import copy

from nnicompress.measure.size import bytes_of_weights
from nnicompress.pipeline import accuracy_control
from nnicompress.pipeline.accuracy_control import AccuracyControl
from nnicompress.pipeline.context import EXPORT_BATCH_SIZE, Context, Facts
from nnicompress.pipeline.job import StagePlan
from nnicompress.pipeline.resumable import ResumableStage
from nnicompress.pipeline.settings import QuantizeSettings
from nnicompress.pipeline.smoke import NUM_BATCHES
from nnicompress.pipeline.weights import WEIGHTS, load_weights, save_weights
from nnicompress.quantization.attach import simulated
from nnicompress.quantization.freeze import freeze
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.result import QuantizationResult, load_quantization, save_quantization
from nnicompress.quantization.settings import QuantizerSettings


def run(context: Context, plan: StagePlan) -> Facts:
    """Run the quantizer; afterwards the model is the frozen one: integer weights, and nothing to train."""
    assert isinstance(plan.compressor, QuantizerSettings), "a quantize stage without a quantizer"
    assert isinstance(plan.settings, QuantizeSettings)
    settings, length = plan.compressor, {"max_steps": plan.settings.max_steps, "max_epochs": plan.settings.max_epochs}
    if context.job.smoke:
        schedule = settings.schedule
        first = min(schedule.simulate_from, NUM_BATCHES - 1)
        settings = settings.model_copy(
            update={
                "calibration_steps": min(settings.calibration_steps, NUM_BATCHES),
                "schedule": schedule.model_copy(update={"simulate_from": first}),
            }
        )
        length = {"max_steps": NUM_BATCHES if settings.trains else None, "max_epochs": None}
    stage = ResumableStage(context, plan, lambda: quantizer.state_dict())
    quantizer = Quantizer(settings, stage.evaluator, context.listener)
    max_drop = plan.settings.max_accuracy_drop
    if max_drop is not None:
        stage.evaluator.require("evaluate", by="max_accuracy_drop", why="it measures the quantized model")
    saved = accuracy_control.stored(context)
    if saved is None:
        state = stage.go_on()
        if state is not None:
            quantizer.load_state_dict(state)
        masks = context.pruning.masks if context.masked and context.pruning is not None else None
        with stage.saving():
            result = quantizer.compress(context.model, **length, alongside=None if masks is None else masks.attach)
    else:
        result = accuracy_control.go_on(context, saved)
    facts: Facts = {"method": settings.method, "backend": settings.backend}
    if max_drop is not None:
        control = AccuracyControl(context, stage.evaluator, settings, result, max_drop, saved)
        result, found = control.run()
        facts["control"] = found.model_dump(mode="json")
    save_quantization(result, context.folder)
    _freeze(context, plan, result, save_weights(context.model, context.folder))
    return {**facts, "summary": result.summary}


def restore(context: Context, plan: StagePlan, facts: Facts) -> None:
    """The trained weights, quantized as they were; freezing them again gives the same integers."""
    load_weights(context.model, context.folder)
    _freeze(context, plan, load_quantization(context.folder), (context.folder / WEIGHTS).stat().st_size)


def _freeze(context: Context, plan: StagePlan, result: QuantizationResult, size: int) -> None:
    """Keep the simulation and the frozen model as phases, and go on with the frozen one."""
    context.quantization = result
    if not result.tensors:  # accuracy control left all of it in float
        context.remember("quantized", "left in float", size)
        return
    (example,) = context.inputs(plan, EXPORT_BATCH_SIZE, device="cpu")
    network = copy.deepcopy(context.model).eval()
    with simulated(context.model, result):
        context.remember("quantized", "fake-quantized", size, network=network)
        frozen = freeze(context.model, example)
    context.model, context.masked = frozen, False
    context.remember("frozen", "frozen", bytes_of_weights(frozen), network=network)
