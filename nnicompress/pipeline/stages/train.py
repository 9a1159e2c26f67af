"""`train` and `finetune`: the evaluator's training on the model as it is, masks enforced where there are some."""

from __future__ import annotations

from contextlib import ExitStack

from nnicompress import exchange
from nnicompress.pipeline.context import Context, Facts
from nnicompress.pipeline.job import StagePlan
from nnicompress.pipeline.resumable import ResumableStage
from nnicompress.pipeline.settings import TrainSettings
from nnicompress.pipeline.smoke import NUM_BATCHES
from nnicompress.tensors import all_tensors

UNSYNCHRONISED = (
    "the training kept them apart; a training_func of your own must wrap its model in DistributedDataParallel (or "
    "average the gradients itself), and a buffer that each process fills must be made equal at its end"
)


def run(context: Context, plan: StagePlan) -> Facts:
    """Train the float model."""
    facts = train(context, plan)
    context.add_phase("baseline", "baseline")
    return facts


def finetune(context: Context, plan: StagePlan) -> Facts:
    """Train what earlier stages left of the model."""
    facts = train(context, plan)
    context.add_phase("finetuned", _finetuned(context))
    return facts


def restore(context: Context, plan: StagePlan, facts: Facts) -> None:
    """The trained weights."""
    context.restore_phase("baseline", "baseline")


def restore_finetuned(context: Context, plan: StagePlan, facts: Facts) -> None:
    """The fine-tuned weights."""
    context.restore_phase("finetuned", _finetuned(context))


def _finetuned(context: Context) -> str:
    return "fine-tuned (masked)" if context.masked else "fine-tuned"


def train(context: Context, plan: StagePlan) -> Facts:
    """Run the stage's own evaluator for as long as its settings say."""
    settings = plan.settings
    assert isinstance(settings, TrainSettings)
    stage = ResumableStage(context, plan)
    evaluator = stage.evaluator
    evaluator.require("train", by=plan.name, why="it trains the model")
    stage.go_on()
    with ExitStack() as stack:
        stack.enter_context(stage.saving())
        stack.enter_context(evaluator.bound(context.model))
        if context.masked:
            assert context.pruning is not None
            stack.callback(context.pruning.masks.attach(evaluator).remove)
        if context.job.smoke:
            result = evaluator.train(max_steps=NUM_BATCHES)
        else:
            result = evaluator.train(max_steps=settings.max_steps, max_epochs=settings.max_epochs)
    exchange.check_equal("the weights", all_tensors(context.model), UNSYNCHRONISED)
    facts: Facts = {"steps": result.steps}
    if result.losses:
        facts["last_loss"] = result.losses[-1]
    if result.metrics:
        facts["validation"] = dict(result.metrics[-1])
    return facts
