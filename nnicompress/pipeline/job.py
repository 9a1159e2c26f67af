"""A job: everything a run needs, already built from the recipe; the pipeline sees no config object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnicompress.pipeline.settings import RuntimeSettings
from nnicompress.report.settings import ExpectedSettings
from nnicompress.settings import Settings

if TYPE_CHECKING:
    from nnicompress.data.roles import Data
    from nnicompress.evaluators.contract import Evaluator
    from nnicompress.events import Listener
    from nnicompress.pruning.settings import PrunerSettings
    from nnicompress.quantization.settings import QuantizerSettings
    from nnicompress.trace import Traced


@dataclass(frozen=True)
class StagePlan:
    """One stage of the recipe, with all it needs."""

    name: str
    """A key of `pipeline.settings.STAGES`."""
    settings: Settings
    """An instance of `STAGES[name]`."""
    build_evaluator: Callable[[Listener], Evaluator]
    """The recipe's evaluator, with this stage's own optimizer and scheduler settings merged in."""
    compressor: PrunerSettings | QuantizerSettings | None = None
    """For `prune` and `quantize`: the stage's own or the recipe's."""


@dataclass(frozen=True)
class Job:
    """What the factory makes of a recipe. Building a job starts nothing and writes nothing."""

    name: str
    """The recipe's name, e.g. `taylorfo_resnet`."""
    build_model: Traced
    """Builds the untrained model on the CPU; called after seeding."""
    data: Data
    stages: tuple[StagePlan, ...]
    run_dir: Path
    resolved_config: dict[str, Any]
    """The recipe with every choice resolved, as plain JSON-able values; written to `manifest.json`."""
    seed: int = 0
    summary: str = ""
    batch_size: int = 1
    """The recipe's batch: latency is measured at it beside batch 1."""
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    expected: ExpectedSettings = field(default_factory=ExpectedSettings)
    metric: str = "accuracy"
    """What the evaluator's default metric is called in the report."""
    mode: str = "max"
    """`max` where a higher metric is better, else `min`."""
    save_every: int = 100
    """Optimizer steps between two saves of a training's state, which a killed run goes on from; 0: none."""
    logging: tuple[str, ...] = ()
    """Keys of `report.loggers.LOGGERS`: which logs of the training are written."""
    smoke: bool = False
    """Take every stage through two batches. The factory wraps the data in `pipeline.smoke.FewBatches`."""
