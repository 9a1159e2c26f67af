"""From a recipe's evaluator to the object: each engine's parts put together, anew for each stage."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from nnicompress import distributed
from nnicompress.config.blueprint import Blueprint, StageBlueprint
from nnicompress.config.schema import RecipeSettings
from nnicompress.errors import ConfigError
from nnicompress.evaluators.evaluation import Evaluation
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.settings import EvaluatorSettings, LightningSettings, TransformersSettings
from nnicompress.evaluators.training_step import SupervisedStep
from nnicompress.events import Listener
from nnicompress.pipeline.seeding import resolve_device
from nnicompress.trace import Traced, parameter_names

if TYPE_CHECKING:
    from nnicompress.data.roles import Data
    from nnicompress.evaluators.contract import Evaluator


@dataclass(frozen=True)
class EvaluatorFactory:
    """Builds the recipe's evaluator anew for each stage, with the stage's optimizer and scheduler.

    A Trainer's device, precision and seed are the recipe's, unless the recipe gives the Trainer others.
    """

    settings: RecipeSettings
    blueprint: Blueprint
    data: Data

    def of_stage(self, name: str) -> Callable[[Listener], Evaluator]:
        """How to build the evaluator of stage `name`."""
        stage = self.blueprint.stages[name]
        return lambda listener: self.build(stage, listener)

    def build(self, stage: StageBlueprint, listener: Listener) -> Evaluator:
        """The evaluator of a stage; its engine's packages are imported here and not before."""
        evaluator = self.settings.evaluator
        if isinstance(evaluator, LightningSettings):
            return self._lightning(evaluator, stage, listener)
        if isinstance(evaluator, TransformersSettings):
            return self._transformers(evaluator, stage, listener)
        assert isinstance(evaluator, EvaluatorSettings)
        return self._torch(evaluator, stage, listener)

    # ---------------------------------------------------------------------------------------------------------- torch

    def _torch(self, evaluator: EvaluatorSettings, stage: StageBlueprint, listener: Listener) -> Evaluator:
        """The shipped loop, training step and evaluation, or the user's own functions in their places."""
        from nnicompress.evaluators.torch_evaluator import TorchEvaluator

        functions = {name: with_data(function, self.data) for name, function in self.blueprint.functions.items()}
        return TorchEvaluator(
            functions.get("training_func") or self._training_loop(evaluator, stage),
            stage.optimizer,
            functions.get("training_step") or self._training_step(),
            stage.scheduler,
            evaluating_func=functions.get("evaluating_func") or self._evaluation(),
            listener=listener,
        )

    def _training_loop(self, evaluator: EvaluatorSettings, stage: StageBlueprint) -> TrainingLoop:
        """The shipped loop over the train role."""
        return TrainingLoop(
            self.data.train_loader,
            seed=self.settings.head.seed,
            interval=stage.interval,
            clip_norm=evaluator.clip_norm,
            accumulate=evaluator.accumulate,
            precision=self.settings.runtime.precision,
        )

    def _training_step(self) -> SupervisedStep | None:
        """The shipped step with the recipe's loss, on the run's device (a loss may hold class weights)."""
        if (traced := self.blueprint.evaluator.get("loss")) is None:
            return None
        loss = traced.build()
        return SupervisedStep(loss.to(resolve_device(self.settings.runtime)) if isinstance(loss, nn.Module) else loss)

    def _evaluation(self) -> Evaluation | None:
        """The recipe's metric over the validation and the test role."""
        if (metric := self.blueprint.evaluator.get("metric")) is None:
            return None
        loaders = {"validation": self.data.validation_loader, "test": self.data.test_loader}
        return Evaluation(loaders, metric, precision=self.settings.runtime.precision)

    # ------------------------------------------------------------------------------------------------------ lightning

    def _lightning(self, evaluator: LightningSettings, stage: StageBlueprint, listener: Listener) -> Evaluator:
        from nnicompress.evaluators.lightning.evaluator import LightningEvaluator

        parts, runtime = self.blueprint.evaluator, self.settings.runtime
        device = resolve_device(runtime)
        trainer = parts["trainer"]
        if "accelerator" not in trainer.kwargs:
            together = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if distributed.launched() else 1
            devices: Any = [device.index or 0] if device.type == "cuda" and together == 1 else together
            trainer = with_defaults(
                trainer,
                accelerator={"cuda": "gpu"}.get(device.type, device.type),
                devices=devices,
                **({"strategy": "ddp"} if together > 1 else {}),
            )
        return LightningEvaluator(
            with_defaults(trainer, precision={"bfloat16": "bf16-mixed"}.get(runtime.precision, "32-true")),
            getattr(self.data, "datamodule", self.data),
            parts.get("module"),
            optimizers=stage.optimizer,
            lr_schedulers=stage.scheduler,
            interval=stage.interval,
            metric=evaluator.metric,
            seed=self.settings.head.seed,
            listener=listener,
        )

    # --------------------------------------------------------------------------------------------------- transformers

    def _transformers(self, evaluator: TransformersSettings, stage: StageBlueprint, listener: Listener) -> Evaluator:
        from nnicompress.evaluators.transformers.evaluator import TransformersEvaluator

        if stage.scheduler is not None and stage.interval == "epoch":
            raise ConfigError(
                "a Trainer of transformers steps its scheduler after each optimizer step; interval: step",
                key="scheduler.interval",
            )
        parts, runtime, seed = self.blueprint.evaluator, self.settings.runtime, self.settings.head.seed
        args = with_defaults(
            parts["args"],
            use_cpu=resolve_device(runtime).type == "cpu",
            bf16=runtime.precision == "bfloat16",
            seed=seed,
            data_seed=seed,
        )
        metrics = self.blueprint.functions.get("compute_metrics") or parts.get("compute_metrics")
        return TransformersEvaluator(
            with_defaults(parts["trainer"], args=args, **({} if metrics is None else {"compute_metrics": metrics})),
            data=self.data,
            optimizers=stage.optimizer,
            lr_schedulers=stage.scheduler,
            metric=evaluator.metric,
            listener=listener,
        )


def with_data(function: Callable[..., Any], data: Data) -> Callable[..., Any]:
    """A user's function, given the recipe's data by name where it has a parameter `data`.

    Its `steps_per_epoch` may be a number or a function of the data.
    """
    if "data" not in parameter_names(function):
        return function
    bound = functools.partial(function, data=data)
    if (steps := getattr(function, "steps_per_epoch", None)) is not None:
        bound.steps_per_epoch = steps(data) if callable(steps) else steps  # type: ignore[attr-defined]
    return bound


def with_defaults(traced: Traced, **defaults: Any) -> Traced:
    """`traced` with these arguments where it was not given them; those that it doesn't take are left out."""
    names = parameter_names(traced.cls)
    taken = {name: value for name, value in defaults.items() if name in names or "kwargs" in names}
    return Traced(traced.cls, traced.args, {**taken, **traced.kwargs})


def metric_name(settings: RecipeSettings, blueprint: Blueprint) -> str:
    """What the report calls the default metric: `accuracy` for any torchmetrics accuracy, else the class's name.

    Where an engine names its metric (`val_acc`), the report does, too; a function of the user's gives its own name.
    """
    evaluator = settings.evaluator
    if isinstance(evaluator, LightningSettings | TransformersSettings) and evaluator.metric not in (None, "default"):
        return str(evaluator.metric)
    parts, own = blueprint.evaluator, blueprint.functions.get("evaluating_func")
    if own is not None:
        return getattr(own, "__name__", "metric").replace("_", " ")
    around = parts.get("module") or parts.get("compute_metrics")
    metric = parts.get("metric") if around is None else around.kwargs.get("metric")
    if not isinstance(metric, Traced):
        return "metric"
    return "accuracy" if metric.name.endswith("Accuracy") else metric.name
