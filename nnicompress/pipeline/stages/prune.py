"""`prune`: choose what to remove, and mask it."""

from __future__ import annotations

from nnicompress.events import Note
from nnicompress.pipeline.context import Context, Facts
from nnicompress.pipeline.job import StagePlan
from nnicompress.pipeline.resumable import ResumableStage
from nnicompress.pipeline.settings import PruneSettings
from nnicompress.pipeline.smoke import NUM_BATCHES
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.settings import PrunerSettings
from nnicompress.pruning.storage import load_pruning, save_pruning


def run(context: Context, plan: StagePlan) -> Facts:
    """Run the pruner; afterwards the model is masked and the masks stay in force until `shrink`."""
    assert isinstance(plan.compressor, PrunerSettings), "a prune stage without a pruner"
    settings = _brief(plan.compressor) if context.job.smoke else plan.compressor
    _tell_unused(context, plan, settings)
    stage = ResumableStage(context, plan, lambda: pruner.state_dict())
    pruner = Pruner(settings, stage.evaluator, context.listener)
    state = stage.go_on()
    if state is not None:
        pruner.load_state_dict(state)
    with stage.saving():
        result = pruner.compress(context.model)
    result.masks.apply(context.model)
    save_pruning(result, context.folder)
    context.pruning, context.masked = result, True
    context.add_phase("pruned", "pruned (masked)")
    return {
        "importance": settings.importance.name,
        "summary": result.summary,
        **{
            unit: {"of": total.size, "asked": total.asked, "removed": total.removed}
            for unit, total in result.totals.items()
        },
    }


def restore(context: Context, plan: StagePlan, facts: Facts) -> None:
    """The masked weights, and what was removed."""
    context.pruning, context.masked = load_pruning(context.folder), True
    context.restore_phase("pruned", "pruned (masked)")


def _tell_unused(context: Context, plan: StagePlan, settings: PrunerSettings) -> None:
    """A warning where the stage has an optimizer or a scheduler of its own and its pruner never trains.

    An error would be in the way of a sweep over importances, some of which train and some of which don't.
    """
    assert isinstance(plan.settings, PruneSettings)
    given = plan.settings.model_fields_set & {"optimizer", "scheduler"}
    if given and "train" not in {capability for capability, _ in Pruner.requirements(settings)}:
        text = f"stages.{plan.name}.{min(given)} changes nothing: {settings.importance.name} importance with a "
        context.listener(Note(f"{text}{settings.schedule.name} schedule trains nothing", warning=True))


def _brief(settings: PrunerSettings) -> PrunerSettings:
    importance = settings.importance.model_copy(
        update={"training_steps": min(settings.importance.training_steps, NUM_BATCHES)}
    )
    schedule = settings.schedule
    if schedule.interval_steps is not None:
        schedule = schedule.model_copy(update={"interval_steps": 1})
    return settings.model_copy(update={"importance": importance, "schedule": schedule})
