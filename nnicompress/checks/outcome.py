"""What a right recipe will do, as `check` says it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnicompress.config.schema import CompressorSettings, RecipeSettings, RecipeStage
from nnicompress.pipeline.settings import QuantizeSettings
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.settings import PrunerSettings
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.settings import QuantizerSettings
from nnicompress.sensitivity.kinds import requirements
from nnicompress.sensitivity.settings import SensitivitySettings


@dataclass(frozen=True)
class TargetMatch:
    """What one target of a compressor selects."""

    key: str
    """`compressor.targets.convs`."""
    what: str
    """What is done to them, in a few words: `output_channel, sparse_ratio 0.4`, `uint8`."""
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    """Names within each module: `weight`."""
    widths: tuple[str, ...] = ()
    """Where a kind of width is pruned, those that they produce, by size: `4 heads: layers.0.q_proj, ...`."""
    in_float: tuple[str, ...] = ()
    """What a quantizer selects and leaves in float, each with the reason."""


@dataclass(frozen=True)
class StageCheck:
    """One stage, what it will do in a few words, and what its compressor asks of the evaluator."""

    name: str
    what: str
    needs: tuple[tuple[str, str], ...] = ()
    """`(capability, what for)`; the recipe gives all of them."""


@dataclass(frozen=True)
class CheckReport:
    """What a right recipe will do."""

    recipe: str
    run_dir: Path
    device: str
    model: str
    num_parameters: int
    data: str
    stages: tuple[StageCheck, ...]
    targets: tuple[TargetMatch, ...]


def describe(settings: RecipeSettings) -> Iterator[StageCheck]:
    """Each stage in a few words."""
    for stage in settings.stages:
        given = stage.settings.model_dump(exclude_defaults=True, exclude={"compressor"})
        words = [f"{name}: {value}" for name, value in given.items()]
        if isinstance(pruner := stage.compressor, PrunerSettings):
            words = [
                f"{pruner.importance.name} importance, {pruner.allocation.name} allocation, {pruner.schedule.name}"
            ]
        elif isinstance(quantizer := stage.compressor, QuantizerSettings):
            words = [f"{quantizer.method} for {quantizer.backend}", *words]
        yield StageCheck(stage.name, ", ".join(words), needs(stage))


def title(compressor: CompressorSettings) -> str:
    """`taylor pruner`."""
    if isinstance(compressor, PrunerSettings):
        return f"{compressor.importance.name} pruner"
    return f"{compressor.method} quantizer"


def needs(stage: RecipeStage) -> tuple[tuple[str, str], ...]:
    """The capabilities that a stage asks of its evaluator, each with what it is for."""
    if isinstance(stage.compressor, PrunerSettings):
        return Pruner.requirements(stage.compressor)
    if isinstance(stage.compressor, QuantizerSettings):
        asked = Quantizer.requirements(stage.compressor)
        if isinstance(stage.settings, QuantizeSettings) and stage.settings.max_accuracy_drop is not None:
            asked += (("evaluate", "to keep the metric within max_accuracy_drop"),)
        return asked
    if isinstance(stage.settings, SensitivitySettings):
        return requirements(stage.settings)
    return {
        "train": (("train", "to train the model"),),
        "finetune": (("train", "to train the model"),),
        "evaluate": (("evaluate", "to measure the model"),),
    }.get(stage.name, ())
