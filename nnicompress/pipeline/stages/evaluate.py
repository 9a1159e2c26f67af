"""`evaluate`: measure every phase of the model, and the exported files in the runtimes that will serve them."""

from __future__ import annotations

from functools import partial

from nnicompress import distributed
from nnicompress.measure.latency import forward_call
from nnicompress.measure.memory import peak_memory
from nnicompress.pipeline.artifacts import measure_artifact
from nnicompress.pipeline.context import SPLIT, Context, Facts
from nnicompress.pipeline.job import StagePlan
from nnicompress.pipeline.settings import EvaluateSettings
from nnicompress.pipeline.timing import batch_sizes, time_calls
from nnicompress.pruning.norms import RestrictedNorms
from nnicompress.report.record import LatencyRecord, Measurements, PhaseMeasurements

MEASURED = "measured.json"


def run(context: Context, plan: StagePlan) -> Facts:
    """Accuracy, latency and memory of the phases, then accuracy and latency of the exported files."""
    settings = plan.settings
    assert isinstance(settings, EvaluateSettings)
    evaluator = plan.build_evaluator(context.listener)
    evaluator.require("evaluate", by=plan.name, why="it measures the accuracy of every phase")
    for phase in context.phases:
        norms = context.pruning.masks.norms if phase.masked and context.pruning is not None else ()
        restricted = RestrictedNorms(phase.model, norms)
        with evaluator.bound(phase.model):
            phase.accuracy = evaluator.evaluate(SPLIT)["default"]
            phase.validation = evaluator.evaluate("validation")["default"]
        restricted.remove()
        phase.model.eval()
    latencies = _latency_of_phases(context, plan, settings)
    (batch,) = context.inputs(plan, context.job.batch_size)
    for phase in context.phases:
        phase.latency = latencies[phase.name]
        if settings.memory and phase.timed:
            phase.peak_memory = distributed.from_main(partial(peak_memory, phase.model, batch))
    for name in context.exported:
        context.artifacts.append(measure_artifact(context, plan, evaluator, name))
    measured = Measurements(
        phases={
            phase.name: PhaseMeasurements(
                accuracy=phase.accuracy,
                validation=phase.validation,
                latency=phase.latency,
                peak_memory=phase.peak_memory,
            )
            for phase in context.phases
        },
        artifacts=tuple(context.artifacts),
    )
    (context.folder / MEASURED).write_text(measured.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return {"split": SPLIT, "batch_sizes": list(batch_sizes(context, settings))}


def restore(context: Context, plan: StagePlan, facts: Facts) -> None:
    """The measurements as they were taken."""
    measured = Measurements.model_validate_json((context.folder / MEASURED).read_text(encoding="utf-8"))
    for phase in context.phases:
        own = measured.phases[phase.name]
        phase.accuracy, phase.validation = own.accuracy, own.validation
        phase.latency, phase.peak_memory = own.latency, own.peak_memory
    context.artifacts.extend(measured.artifacts)


def _latency_of_phases(
    context: Context, plan: StagePlan, settings: EvaluateSettings
) -> dict[str, tuple[LatencyRecord, ...]]:
    found: dict[str, tuple[LatencyRecord, ...]] = {phase.name: () for phase in context.phases}
    timed = [phase for phase in context.phases if phase.timed]
    sizes = batch_sizes(context, settings)
    for size, inputs in zip(sizes, context.inputs(plan, *sizes), strict=True):
        calls = {phase.name: forward_call(phase.model.eval(), inputs) for phase in timed}
        for name, record in time_calls(calls, size, context, settings).items():
            found[name] += (record,)
    return found
