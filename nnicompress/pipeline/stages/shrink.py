"""`shrink`: remove what is masked, prove that the compact model is the masked one, recalibrate where asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from nnicompress.errors import JobError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.evaluators.inputs import as_model_input
from nnicompress.export.comparison import on_device
from nnicompress.pipeline.context import Context, Facts
from nnicompress.pipeline.job import StagePlan
from nnicompress.pipeline.settings import ShrinkSettings
from nnicompress.shrink.batch_norm import recalibrate_batch_norm
from nnicompress.shrink.config import apply_config, follow_config
from nnicompress.shrink.proof import Proof, prove
from nnicompress.shrink.surgery import shrink

PROOF_BATCH_SIZES = (2, 3)


def run(context: Context, plan: StagePlan) -> Facts:
    """Replace the model by its compact form; the proof runs on real inputs of two batch sizes.

    Raises:
        JobError: nothing can be shrunk, because single weights were pruned and no channels.
        ProofError: the compact model is not the masked one.
    """
    assert isinstance(plan.settings, ShrinkSettings)
    pruning = context.pruning
    assert pruning is not None, "shrink without prune"
    if pruning.groups is None or not pruning.removal:
        raise JobError(
            "shrink: single weights were pruned, no channels, so no tensor can be made smaller; "
            "leave out the shrink stage, or prune with granularity output_channel"
        )
    masked = context.model
    compact = shrink(masked, pruning.groups, pruning.removal)
    batches = context.inputs(plan, *PROOF_BATCH_SIZES)
    context.proof = prove(masked, compact, pruning.groups, pruning.removal, batches)
    rewritten = follow_config(compact, pruning.groups, batches[0])
    count = plan.settings.recalibrate_batches
    recalibrated = recalibrate_batch_norm(compact, training_inputs(context, count)) if count else 0
    context.model, context.masked = compact, False
    context.add_phase("shrunk", "shrunk")
    return {
        "proof": asdict(context.proof),
        "recalibrated_batches": recalibrated,
        "config": dict(rewritten.changed),
        "config_reason": rewritten.reason,
    }


def restore(context: Context, plan: StagePlan, facts: Facts) -> None:
    """The same surgery, filled with the weights that it left; what was proved then holds for them."""
    pruning = context.pruning
    assert pruning is not None and pruning.groups is not None
    context.model, context.masked = shrink(context.model, pruning.groups, pruning.removal), False
    apply_config(context.model, facts["config"])
    proof = facts["proof"]
    context.proof = Proof(**{**proof, "batch_sizes": tuple(proof["batch_sizes"])})
    context.restore_phase("shrunk", "shrunk")


def training_inputs(context: Context, count: int) -> Iterator[ModelInput]:
    """The inputs of the first `count` training batches, as the shipped training step passes them, on the device."""
    loader: Any = context.job.data.train_loader(context.job.seed)
    for inputs, _ in islice(loader, count):
        yield on_device(as_model_input(inputs), context.device)
