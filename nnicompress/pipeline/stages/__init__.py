"""The stages of a recipe, by name."""

from __future__ import annotations

from types import MappingProxyType

from nnicompress.pipeline.context import Stages
from nnicompress.pipeline.stages import evaluate, export, prune, shrink, start, train

RUNNERS: Stages = MappingProxyType(
    {
        "train": train.run,
        "start": start.run,
        "prune": prune.run,
        "shrink": shrink.run,
        "finetune": train.finetune,
        "export": export.run,
        "evaluate": evaluate.run,
    }
)
