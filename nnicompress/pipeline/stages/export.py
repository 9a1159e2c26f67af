"""`export`: `model/` for Python, and the formats asked for; each file is loaded again and compared."""

from __future__ import annotations

from nnicompress.export.comparison import compare_outputs, cpu_copy
from nnicompress.export.formats import FORMATS
from nnicompress.export.inference import write_inference_files
from nnicompress.export.plain import FOLDER, save_plain
from nnicompress.pipeline.context import EXPORT_BATCH_SIZE, Context, Exported, Facts
from nnicompress.pipeline.job import StagePlan
from nnicompress.pipeline.settings import ExportSettings

CHECK_BATCH_SIZES = (1, 3)


def run(context: Context, plan: StagePlan) -> Facts:
    """Write `model/` and the formats into the run's folder, each moved there when it is whole and checked."""
    assert isinstance(plan.settings, ExportSettings)
    for name in plan.settings.formats:
        FORMATS[name].require()
    write_plain(context, plan)
    model = cpu_copy(context.model)
    example, *checks = context.inputs(plan, EXPORT_BATCH_SIZE, *CHECK_BATCH_SIZES, device="cpu")
    facts: Facts = {}
    for name in plan.settings.formats:
        form = FORMATS[name]
        file = context.folder / form.file
        form.export(model, example, file)
        loaded = form.load(file, model, example).eval()
        difference = compare_outputs(loaded, model, checks, tolerance=form.tolerance(model), what=form.file)
        context.exported[name] = Exported(context.run.publish(file, form.file), loaded, difference)
        facts[name] = {"max_relative_difference": difference}
    return facts


def write_plain(context: Context, plan: StagePlan) -> None:
    """Write `model/`. The recipe's own words for the model go into its description."""
    (example,) = context.inputs(plan, EXPORT_BATCH_SIZE, device="cpu")
    job, folder = context.job, context.folder / f".{FOLDER}.partial"
    save_plain(cpu_copy(context.model), job.build_model, job.resolved_config["model"], example, folder)
    write_inference_files(job.data, folder)
    context.run.publish(folder, FOLDER)


def restore(context: Context, plan: StagePlan, facts: Facts) -> None:
    """The files as they lie in the run's folder, loaded again."""
    assert isinstance(plan.settings, ExportSettings)
    model = cpu_copy(context.model)
    (example,) = context.inputs(plan, EXPORT_BATCH_SIZE, device="cpu")
    for name in plan.settings.formats:
        file = context.run.path / FORMATS[name].file
        loaded = FORMATS[name].load(file, model, example).eval()
        context.exported[name] = Exported(file, loaded, facts[name]["max_relative_difference"])
