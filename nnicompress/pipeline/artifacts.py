"""An exported file in the runtime that will serve it, beside the baseline exported the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from nnicompress.errors import JobError
from nnicompress.evaluators.contract import Evaluator, ModelInput
from nnicompress.export.comparison import cpu_copy
from nnicompress.export.divergence import first_divergence
from nnicompress.export.formats import FORMATS
from nnicompress.export.integer_coverage import FloatOperator
from nnicompress.measure.file_memory import onnx_memory
from nnicompress.measure.latency import forward_call
from nnicompress.measure.size import bytes_of
from nnicompress.pipeline.context import EXPORT_BATCH_SIZE, SPLIT, Context, Exported
from nnicompress.pipeline.job import StagePlan
from nnicompress.pipeline.settings import EvaluateSettings
from nnicompress.pipeline.timing import batch_sizes, time_calls
from nnicompress.quantization.frozen import FrozenModel
from nnicompress.report.record import ArtifactRecord, FloatOperatorsRecord, LatencyRecord

MEMORY = {"onnx": onnx_memory}
"""Format -> what measures the memory of a process that serves it."""


def measure_artifact(context: Context, plan: StagePlan, evaluator: Evaluator, name: str) -> ArtifactRecord:
    """The file of format `name` beside the baseline, exported the same way; the baseline's does not outlive this."""
    settings = plan.settings
    assert isinstance(settings, EvaluateSettings)
    form = FORMATS[name]
    exported = context.exported[name]
    served, baseline = exported.loaded, cpu_copy(context.phases[0].model)
    sizes = batch_sizes(context, settings)
    example, batch, *timed = context.inputs(plan, EXPORT_BATCH_SIZE, context.job.batch_size, *sizes, device="cpu")
    baseline_file = context.folder / f"baseline-{form.file}"
    form.export(baseline, example, baseline_file)
    reference = form.load(baseline_file, baseline, example).eval()
    accuracies = []
    for model in (served, reference):
        with evaluator.bound(model):
            accuracies.append(evaluator.evaluate(SPLIT)["default"])
    compare_metric(accuracies[0], context, settings, exported, runtime=form.runtime, inputs=batch)
    latency: tuple[LatencyRecord, ...] = ()
    baseline_latency: tuple[LatencyRecord, ...] = ()
    for size, inputs in zip(sizes, timed, strict=True):
        calls = {"served": forward_call(served, inputs), "baseline": forward_call(reference, inputs)}
        records = time_calls(calls, size, context, settings)
        latency += (records["served"],)
        baseline_latency += (records["baseline"],)
    baseline_bytes = bytes_of(baseline_file)
    memory: list[int | None] = [None, None]
    if settings.memory and name in MEMORY:
        memory = [MEMORY[name](file, batch, torch.get_num_threads()) for file in (exported.path, baseline_file)]
    baseline_file.unlink()
    coverage = None
    if context.quantization is not None and form.coverage is not None:
        coverage = form.coverage(exported.path)
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
        peak_memory=memory[0],
        baseline_peak_memory=memory[1],
        integer={} if coverage is None else dict(coverage.integer),
        floating=() if coverage is None else _by_reason(coverage.floating),
    )


def _by_reason(operators: Iterable[FloatOperator]) -> tuple[FloatOperatorsRecord, ...]:
    counts = Counter((operator.operator, operator.reason) for operator in operators)
    return tuple(FloatOperatorsRecord(operator=o, count=n, reason=r) for (o, r), n in counts.most_common())


def compare_metric(
    served: float, context: Context, settings: EvaluateSettings, exported: Exported, *, runtime: str, inputs: ModelInput
) -> None:
    """Raise a JobError where the metric of an exported file is too far from that of the model it was made of.

    Of a quantized model it names the first layer whose integers differ by more than a step.
    """
    eager, bound = context.phases[-1].accuracy, settings.max_deployed_gap
    # A NaN compares False with everything, and must not pass.
    if bound is None or eager is None or served == eager or abs(served - eager) <= bound:
        return
    raise JobError(
        f"{exported.path.name}: {context.job.metric} is {served:.4g} in {runtime} and {eager:.4g} in PyTorch; they "
        f"differ by {abs(served - eager):.2g}, more than stages.evaluate.max_deployed_gap ({bound:g})"
        f"{_first_divergence(context, exported, inputs)}"
    )


def _first_divergence(context: Context, exported: Exported, inputs: ModelInput) -> str:
    if not isinstance(context.model, FrozenModel) or exported.path.suffix != ".onnx":
        return ""
    found = first_divergence(context.model, exported.path, inputs)
    if found is None:
        return "; on the first samples no layer's integers differ by more than rounding explains"
    return (
        f"; the first layer that differs is {found.module}: {found.share:.1%} of its integers, by {found.mean:.2g} "
        f"steps on average and up to {found.largest}"
    )
