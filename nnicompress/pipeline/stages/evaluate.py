"""`evaluate`: measure every phase of the model, and the exported files in the runtimes that will serve them."""

from __future__ import annotations

from functools import partial

from nnicompress import distributed
from nnicompress.errors import JobError
from nnicompress.evaluators.contract import Evaluator
from nnicompress.export.comparison import cpu_copy, on_device
from nnicompress.export.formats import FORMATS
from nnicompress.measure.latency import Call, forward_call, measure_calls
from nnicompress.measure.memory import peak_memory
from nnicompress.measure.size import bytes_of
from nnicompress.pipeline.context import Context, Facts
from nnicompress.pipeline.job import StagePlan
from nnicompress.pipeline.settings import EvaluateSettings
from nnicompress.pipeline.stages.export import EXPORT_BATCH_SIZE
from nnicompress.pruning.norms import RestrictedNorms
from nnicompress.report.record import ArtifactRecord, LatencyRecord, Measurements, PhaseMeasurements

SPLIT = "test"
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
    latencies = _latency_of_phases(context, evaluator, settings)
    for phase in context.phases:
        phase.latency = latencies[phase.name]
        if settings.memory:
            with evaluator.bound(phase.model):
                inputs = context.inputs(evaluator, context.job.batch_size)
            phase.peak_memory = distributed.from_main(partial(peak_memory, phase.model, inputs))
    for name in context.exported:
        context.artifacts.append(_measure_artifact(context, evaluator, settings, name))
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
    return {"split": SPLIT, "batch_sizes": list(_batch_sizes(context, settings))}


def restore(context: Context, plan: StagePlan, facts: Facts) -> None:
    """The measurements as they were taken."""
    measured = Measurements.model_validate_json((context.folder / MEASURED).read_text(encoding="utf-8"))
    for phase in context.phases:
        own = measured.phases[phase.name]
        phase.accuracy, phase.validation = own.accuracy, own.validation
        phase.latency, phase.peak_memory = own.latency, own.peak_memory
    context.artifacts.extend(measured.artifacts)


def _batch_sizes(context: Context, settings: EvaluateSettings) -> tuple[int, ...]:
    return tuple(sorted(set(settings.batch_sizes or (1, context.job.batch_size))))


def _latency_of_phases(
    context: Context, evaluator: Evaluator, settings: EvaluateSettings
) -> dict[str, tuple[LatencyRecord, ...]]:
    found: dict[str, tuple[LatencyRecord, ...]] = {phase.name: () for phase in context.phases}
    for size in _batch_sizes(context, settings):
        with evaluator.bound(context.model):
            inputs = context.inputs(evaluator, size)
        calls = {phase.name: forward_call(phase.model.eval(), inputs) for phase in context.phases}
        for name, record in _time(calls, size, context, settings).items():
            found[name] += (record,)
    return found


def _measure_artifact(context: Context, evaluator: Evaluator, settings: EvaluateSettings, name: str) -> ArtifactRecord:
    """The exported file beside the baseline, exported the same way; the baseline's file does not outlive this."""
    form = FORMATS[name]
    exported = context.exported[name]
    served, baseline = exported.loaded, cpu_copy(context.phases[0].model)
    with evaluator.bound(context.model):
        example = on_device(evaluator.example_inputs(EXPORT_BATCH_SIZE), "cpu")
    baseline_file = context.folder / f"baseline-{form.file}"
    form.export(baseline, example, baseline_file)
    reference = form.load(baseline_file, baseline, example).eval()
    accuracies = []
    for model in (served, reference):
        with evaluator.bound(model):
            accuracies.append(evaluator.evaluate(SPLIT)["default"])
    compare_metric(accuracies[0], context, settings, file=form.file, runtime=form.runtime)
    latency: tuple[LatencyRecord, ...] = ()
    baseline_latency: tuple[LatencyRecord, ...] = ()
    for size in _batch_sizes(context, settings):
        with evaluator.bound(context.model):
            inputs = on_device(evaluator.example_inputs(size), "cpu")
        calls = {"served": forward_call(served, inputs), "baseline": forward_call(reference, inputs)}
        records = _time(calls, size, context, settings)
        latency += (records["served"],)
        baseline_latency += (records["baseline"],)
    baseline_bytes = bytes_of(baseline_file)
    baseline_file.unlink()
    return ArtifactRecord(
        format=name,
        path=exported.path.name,
        runtime=form.runtime,
        bytes=bytes_of(exported.path),
        baseline_bytes=baseline_bytes,
        max_relative_difference=exported.max_relative_difference,
        accuracy=accuracies[0],
        baseline_accuracy=accuracies[1],
        latency=latency,
        baseline_latency=baseline_latency,
    )


def compare_metric(served: float, context: Context, settings: EvaluateSettings, *, file: str, runtime: str) -> None:
    """Raise a JobError where the metric of an exported file is too far from that of the model it was made of."""
    eager, bound = context.phases[-1].accuracy, settings.max_accuracy_difference
    # A NaN compares False with everything, and must not pass.
    if bound is None or eager is None or served == eager or abs(served - eager) <= bound:
        return
    raise JobError(
        f"{file}: {context.job.metric} is {served:.4g} in {runtime} and {eager:.4g} in PyTorch; they differ by "
        f"{abs(served - eager):.2g}, more than stages.evaluate.max_accuracy_difference ({bound:g})"
    )


def _time(
    calls: dict[str, Call], batch_size: int, context: Context, settings: EvaluateSettings
) -> dict[str, LatencyRecord]:
    repeats, seconds = (5, 0.2) if context.job.smoke else (settings.repeats, settings.seconds)
    # The other processes wait and leave the machine to this one.
    measured = distributed.from_main(
        lambda: measure_calls(calls, warmup=settings.warmup, repeats=repeats, seconds=seconds)
    )
    return {
        name: LatencyRecord(batch_size=batch_size, median=one.median, low=one.low, high=one.high, repeats=one.repeats)
        for name, one in measured.items()
    }
