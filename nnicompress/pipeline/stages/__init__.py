"""The stages of a recipe, by name."""

from __future__ import annotations

from types import MappingProxyType

from nnicompress.pipeline.context import Stage, Stages
from nnicompress.pipeline.stages import evaluate, export, prune, quantize, sensitivity, shrink, start, train

RUNNERS: Stages = MappingProxyType(
    {
        "train": Stage(train.run, train.restore),
        "start": Stage(start.run, start.restore),
        "sensitivity": Stage(sensitivity.run, sensitivity.restore),
        "prune": Stage(prune.run, prune.restore),
        "shrink": Stage(shrink.run, shrink.restore),
        "finetune": Stage(train.finetune, train.restore_finetuned),
        "quantize": Stage(quantize.run, quantize.restore),
        "export": Stage(export.run, export.restore),
        "evaluate": Stage(evaluate.run, evaluate.restore),
    }
)
