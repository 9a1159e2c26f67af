"""From a config to a job: the only place where settings become objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from nnicompress.config.blueprint import Blueprint, StageBlueprint, draw
from nnicompress.config.resolve import resolve
from nnicompress.config.schema import RecipeSettings, validate
from nnicompress.errors import ConfigError, InputErrors, UserError
from nnicompress.evaluators.evaluation import Evaluation
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.training_step import SupervisedStep
from nnicompress.events import Listener
from nnicompress.pipeline.job import Job, StagePlan
from nnicompress.pipeline.seeding import resolve_device
from nnicompress.pipeline.smoke import FewBatches
from nnicompress.trace import Traced

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nnicompress.data.roles import Data
    from nnicompress.evaluators.contract import Evaluator


def build_job(cfg: DictConfig, *, smoke: bool = False) -> Job:
    """Build what a run needs; nothing is started, written or set. `smoke`: two batches of everything.

    Raises:
        InputErrors: every wrong key, or every wrong `_target_` and argument.
        ConfigError: the data can't be built.
    """
    resolved = resolve(cfg)
    settings = validate(resolved)
    blueprint = draw(resolved)
    if blueprint.errors:
        raise InputErrors(blueprint.errors)
    data = build_data(blueprint)
    return assemble(settings, blueprint, FewBatches(data) if smoke else data, smoke=smoke)


def assemble(settings: RecipeSettings, blueprint: Blueprint, data: Data, *, smoke: bool = False) -> Job:
    """The job of a recipe that was checked."""
    assert blueprint.model is not None and not blueprint.errors
    evaluators = EvaluatorFactory(settings, blueprint, data)
    stages = tuple(
        StagePlan(stage.name, stage.settings, evaluators.of_stage(stage.name), stage.compressor)
        for stage in settings.stages
    )
    return Job(
        name=settings.head.name,
        build_model=blueprint.model,
        data=data,
        stages=stages,
        run_dir=Path(settings.head.run_dir),
        resolved_config=settings.values,
        seed=settings.head.seed,
        summary=settings.head.summary,
        batch_size=batch_size_of(settings),
        runtime=settings.runtime,
        expected=settings.expected,
        metric=metric_name(blueprint),
        mode=settings.evaluator.mode,
        logging=settings.head.logging,
        smoke=smoke,
        save_every=settings.head.save_every,
    )


@dataclass(frozen=True)
class EvaluatorFactory:
    """Builds the recipe's evaluator anew for each stage, with the stage's optimizer and scheduler."""

    settings: RecipeSettings
    blueprint: Blueprint
    data: Data

    def of_stage(self, name: str) -> Callable[[Listener], Evaluator]:
        """How to build the evaluator of stage `name`."""
        stage = self.blueprint.stages[name]
        return lambda listener: self.build(stage, listener)

    def build(self, stage: StageBlueprint, listener: Listener) -> Evaluator:
        """The shipped loop, training step and evaluation, or the user's own functions in their places."""
        from nnicompress.evaluators.torch_evaluator import TorchEvaluator

        functions = self.blueprint.functions
        return TorchEvaluator(
            functions.get("training_func") or self.training_loop(stage),
            stage.optimizer,
            functions.get("training_step") or self.training_step(),
            stage.scheduler,
            evaluating_func=functions.get("evaluating_func") or self.evaluation(),
            listener=listener,
        )

    def training_loop(self, stage: StageBlueprint) -> TrainingLoop:
        """The shipped loop over the train role."""
        evaluator, runtime = self.settings.evaluator, self.settings.runtime
        return TrainingLoop(
            self.data.train_loader,
            seed=self.settings.head.seed,
            interval=stage.interval,
            clip_norm=evaluator.clip_norm,
            accumulate=evaluator.accumulate,
            precision=runtime.precision,
        )

    def training_step(self) -> SupervisedStep | None:
        """The shipped step with the recipe's loss, on the run's device (a loss may hold class weights)."""
        if self.blueprint.loss is None:
            return None
        loss = self.blueprint.loss.build()
        return SupervisedStep(loss.to(resolve_device(self.settings.runtime)) if isinstance(loss, nn.Module) else loss)

    def evaluation(self) -> Evaluation | None:
        """The recipe's metric over the validation and the test role."""
        if self.blueprint.metric is None:
            return None
        loaders = {"validation": self.data.validation_loader, "test": self.data.test_loader}
        return Evaluation(loaders, self.blueprint.metric, precision=self.settings.runtime.precision)


def build_data(blueprint: Blueprint) -> Data:
    """The recipe's data object; what its constructor raises becomes one ConfigError."""
    assert blueprint.data is not None
    data: Data = built(blueprint.data, "data")
    return data


def built(traced: Traced, key: str, *args: Any) -> Any:
    """`traced.build(*args)`; whatever the user's class raises becomes a ConfigError about `key`."""
    try:
        return traced.build(*args)
    except ConfigError:
        raise
    except UserError as error:
        raise ConfigError(str(error), key=key) from error
    except Exception as error:  # a constructor of anybody's may raise anything
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{traced.name} raises {type(error).__name__}: {first}", key=key) from error


def batch_size_of(settings: RecipeSettings) -> int:
    """The recipe's batch, at which latency is measured: `data.batch_size`, or 1 where the data have no such setting."""
    size = settings.data.get("batch_size", 1)
    return size if isinstance(size, int) else 1


def metric_name(blueprint: Blueprint) -> str:
    """What the report calls the default metric: `accuracy` for any torchmetrics accuracy, else the class's name."""
    if blueprint.metric is None or "evaluating_func" in blueprint.functions:
        return "metric"
    name = blueprint.metric.name
    return "accuracy" if name.endswith("Accuracy") else name
