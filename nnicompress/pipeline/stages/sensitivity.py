"""`sensitivity`: compress one layer after the other and measure; each measurement is stored as soon as it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nnicompress import distributed
from nnicompress.errors import JobError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.events import Note
from nnicompress.graph.macs import count_macs
from nnicompress.pipeline.context import Context, Facts
from nnicompress.pipeline.job import StagePlan
from nnicompress.pipeline.smoke import NUM_BATCHES
from nnicompress.report.sensitivity_html import write_page
from nnicompress.sensitivity.analysis import Values, measure
from nnicompress.sensitivity.kinds import probe_of, requirements
from nnicompress.sensitivity.probe import Subject
from nnicompress.sensitivity.result import FILE, PAGE, make
from nnicompress.sensitivity.settings import SensitivitySettings


def run(context: Context, plan: StagePlan) -> Facts:
    """Measure the model with each layer compressed, and publish what was found; the model stays as it is.

    Raises:
        JobError: the model has nothing that can be compressed so.
    """
    settings = plan.settings
    assert isinstance(settings, SensitivitySettings)
    evaluator = plan.build_evaluator(context.listener)
    for capability, why in requirements(settings):
        evaluator.require(capability, by="the sensitivity stage", why=why)
    values = _stored(context)
    (inputs,) = context.inputs(plan, 2)
    if context.job.smoke:
        settings = settings.model_copy(
            update={
                "ratios": settings.ratios[:1],
                "levels": settings.levels[:1],
                "calibration_steps": min(settings.calibration_steps, NUM_BATCHES),
            }
        )
    probe = probe_of(settings, evaluator, context.model, context.listener)
    if not probe.subjects:
        raise JobError(f"sensitivity: nothing of this model can be {settings.kind}, so there is nothing to measure")
    with evaluator.bound(context.model):
        measure(
            evaluator,
            probe,
            settings.mode,
            values,
            measured=lambda point: _store(context, values),
            listener=context.listener,
        )
    found = make(
        subjects=_shares(context, probe.subjects, inputs),
        values=values,
        recipe=context.job.name,
        probe=settings.kind,
        mode=settings.mode,
        metric=context.job.metric,
        metric_mode=context.job.mode,
        levels=probe.levels,
        max_drop=settings.max_drop,
    )
    (context.folder / FILE).write_text(found.as_yaml(), encoding="utf-8")
    write_page(found, context.folder / PAGE)
    for name in (FILE, PAGE):
        context.run.publish(context.folder / name, name)
    return {"mode": settings.mode, "measurements": len(values), "exclude_op_names": found.exclusions()}


def restore(context: Context, plan: StagePlan, facts: Facts) -> None:
    """Nothing: what was found lies in the run's folder, and the model is as it was."""


def _stored(context: Context) -> Values:
    """What an earlier process has measured."""
    saved = distributed.from_main(context.checkpoint.load)
    if saved is None:
        return {}
    values: Values = {(subject, level): value for subject, level, value in saved["values"]}
    context.listener(Note(f"goes on after {len(values)} measurements"))
    return values


def _store(context: Context, values: Values) -> None:
    if distributed.is_main():
        context.checkpoint.save({"values": [[subject, level, value] for (subject, level), value in values.items()]})


def _shares(context: Context, subjects: Sequence[Subject], inputs: ModelInput) -> dict[str, Mapping[str, Any]]:
    """What each subject's own layers hold of the model's parameters and multiply-accumulates."""
    model = context.model
    total = sum(parameter.numel() for parameter in model.parameters())
    macs = _macs(context, model, inputs)
    return {
        subject.name: {
            "modules": subject.modules,
            "params_share": sum(model.get_parameter(name).numel() for name in subject.tensors) / total,
            "macs_share": None if macs is None else sum(macs.get(name, 0.0) for name in subject.modules),
        }
        for subject in subjects
    }


def _macs(context: Context, model: nn.Module, inputs: ModelInput) -> dict[str, float] | None:
    """Module -> its share of all; None where they can't be counted."""
    try:
        counted = count_macs(model, *inputs)
    except (JobError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        context.listener(Note(f"multiply-accumulates were not counted: {reason}", warning=True))
        return None
    return {name: count / counted.total for name, count in counted.by_module.items()} if counted.total else None
