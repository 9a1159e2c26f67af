"""Everything that can be known of a recipe without training it: all that is wrong at once, or what it will do."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nnicompress.checks.compressors import check_pruners, check_quantizers
from nnicompress.checks.exports import as_call, asked_formats, exports
from nnicompress.checks.findings import Findings
from nnicompress.checks.outcome import CheckReport, TargetMatch, describe, needs, title
from nnicompress.checks.probe import (
    first_inputs,
    measured,
    on_first_batch,
    random_states_kept,
    training_objects_built,
    two_samples,
)
from nnicompress.config.blueprint import StageBlueprint, draw
from nnicompress.config.compose import Composed, compose_what_is_right
from nnicompress.config.resolve import MISSING, Resolved, SourceOf, resolve, unknown_source
from nnicompress.config.schema import RecipeSettings, examine
from nnicompress.data.roles import Data
from nnicompress.engines import EvaluatorFactory
from nnicompress.errors import InputErrors
from nnicompress.evaluators.contract import ModelInput
from nnicompress.evaluators.training_step import predict
from nnicompress.events import silent
from nnicompress.export.inference import inference_facts
from nnicompress.factory import build_data, built
from nnicompress.models.outputs import class_name
from nnicompress.pipeline.run_dir import refuse_unusable
from nnicompress.pipeline.seeding import resolve_device
from nnicompress.pipeline.settings import StartSettings
from nnicompress.pipeline.smoke import FewBatches
from nnicompress.pipeline.stages.start import load_weights, read_checkpoint
from nnicompress.pruning.settings import PrunerSettings
from nnicompress.pruning.targets import select
from nnicompress.report.loggers import require_packages
from nnicompress.shrink.description import storable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nnicompress.config.locate import Origin


def check(cfg: DictConfig, origin: Origin | None = None) -> CheckReport:
    """Check a composed recipe completely, without training and without writing anything.

    Keys and types; every `_target_` with its arguments; the model, the data, optimizers and schedulers are built, and
    one small batch goes through model, loss and metric, and the model through the exporters; selectors, compressors'
    needs, checkpoint and device.

    Raises:
        InputErrors: all that is wrong. What an earlier mistake hides (selectors of a model that can't be built) is
            told when that is mended.
    """
    with random_states_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Check(resolve(cfg, origin.source_of if origin else unknown_source), origin).run()


def check_recipe(overrides: Sequence[str], *, config_dir: Path | None = None) -> tuple[Composed, CheckReport]:
    """Compose `["recipe=NAME", "seed=1", ...]` and check it.

    Raises:
        InputErrors: all that is wrong, with the overrides and with the recipe together.
    """
    composed, errors = compose_what_is_right(overrides, config_dir=config_dir)
    report = None
    if composed is not None:
        try:
            report = check(composed.config, composed.origin)
        except InputErrors as found:
            errors += found.errors
    if errors:
        raise InputErrors(tuple(errors))
    assert composed is not None and report is not None
    return composed, report


class _Check(Findings):
    def __init__(self, resolved: Resolved, origin: Origin | None) -> None:
        source_of: SourceOf = origin.source_of if origin else unknown_source
        self.resolved = resolved
        self.examined = examine(resolved, source_of)
        self.blueprint = draw(resolved, source_of)
        super().__init__(source_of, [*self.examined.errors, *self.blueprint.errors])

    def run(self) -> CheckReport:
        model, data = self.model(), self.data()
        targets = self.targets(model) if model is not None else ()
        settings = self.examined.settings
        device = self.attempt("runtime.device", resolve_device, settings.runtime) if settings else None
        if settings is not None:
            self.attempt("run_dir", refuse_unusable, Path(settings.head.run_dir))
        if model is not None:
            self.training_objects(model)
        if settings is not None and not self.blueprint.errors:
            self.checkpoint(settings, model)
            self.formats(settings)
            if data is not None:
                self.needs(settings, data)
                self.attempt("data", inference_facts, data)
                if model is not None:
                    self.one_batch(settings, model, data)
                    targets = check_pruners(self, self.blueprint, settings, model, data, targets)
                    targets += check_quantizers(self, self.blueprint, self.resolved, settings, model, data)
        if self.errors:
            raise InputErrors(tuple(dict.fromkeys(self.errors)))
        assert settings is not None and model is not None and data is not None and device is not None
        return CheckReport(
            recipe=settings.head.name,
            run_dir=Path(settings.head.run_dir),
            device=str(device),
            model=class_name(model),
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            data=type(data).__name__,
            stages=tuple(describe(settings)),
            targets=targets,
        )

    def model(self) -> nn.Module | None:
        """The untrained model."""
        traced = self.blueprint.model
        if traced is None or _has_missing(self.resolved.values["model"]):
            return None
        model = self.attempt("model", built, traced, "model")
        if model is not None and not isinstance(model, nn.Module):
            self.fail(f"{traced.name} returns {type(model).__name__}, not a torch.nn.Module", "model._target_")
            return None
        return model

    def data(self) -> Data | None:
        """The data object; its files are looked at."""
        traced = self.blueprint.data
        if traced is None or _has_missing(self.resolved.values["data"]):
            return None
        data: Any = self.attempt("data", build_data, self.blueprint)
        if data is not None and not isinstance(data, Data):
            members = ("num_classes", "input_shape", "train_loader", "validation_loader", "test_loader", "fingerprint")
            lacking = ", ".join(member for member in members if not hasattr(data, member))
            self.fail(f"{type(data).__name__} lacks {lacking}, which a data object has", "data._target_")
            return None
        return data

    def targets(self, model: nn.Module) -> tuple[TargetMatch, ...]:
        """What each target of each compressor selects."""
        found = []
        for key, settings in self.examined.compressors.items():
            if not isinstance(settings, PrunerSettings):  # it follows the forward: see `quantizers`
                continue
            for name, target in settings.targets.items():
                where = f"{key}.targets.{name}"
                if _has_missing(target.model_dump(mode="json")):  # an interpolation that leads nowhere: told already
                    continue
                selected = self.attempt(where, select, model, target, key=where)
                if selected is not None:
                    what = _treatment(settings, name)
                    found.append(TargetMatch(where, what, selected.module_names, selected.target_names))
        return tuple(found)

    def training_objects(self, model: nn.Module) -> None:
        """Each stage's optimizer and scheduler can be built for the model, whose parameters each have one group."""
        done: list[StageBlueprint] = []
        for name, stage in self.blueprint.stages.items():
            if any(stage is other for other in done):
                continue
            done.append(stage)
            own = self.resolved.values["stages"][name]
            prefix = f"stages.{name}."
            optimizer_key = f"{prefix}optimizer" if "optimizer" in own else "optimizer"
            scheduler_key = f"{prefix}scheduler" if "scheduler" in own else "scheduler"
            if stage.optimizer is None:  # the engine's own, which only a training builds
                continue
            alone = self.attempt(optimizer_key, training_objects_built, stage.optimizer, None, model)
            if alone and stage.scheduler is not None:
                self.attempt(scheduler_key, training_objects_built, stage.optimizer, stage.scheduler, model)

    def checkpoint(self, settings: RecipeSettings, model: nn.Module | None) -> None:
        """The user's weights are there, can be read and fit the model."""
        for stage in settings.stages:
            if isinstance(start := stage.settings, StartSettings):
                key = f"stages.{stage.name}.checkpoint"
                path = Path(start.checkpoint).expanduser()
                weights = self.attempt(key, read_checkpoint, path)
                if weights is not None and model is not None:
                    self.attempt(key, load_weights, model, weights)

    def formats(self, settings: RecipeSettings) -> None:
        """The packages of each export format and of each logger are installed."""
        for key, form in asked_formats(settings, self.resolved):
            self.attempt(key, form.require)
        self.attempt("logging", require_packages, settings.head.logging)

    def exports(self, settings: RecipeSettings, model: nn.Module, inputs: ModelInput) -> None:
        """The model can be written in each format, and its inputs beside it."""
        self.attempt("data", storable, inputs)
        if not self.errors:
            for key, form in asked_formats(settings, self.resolved):
                self.attempt(key, exports, form, model, inputs)

    def needs(self, settings: RecipeSettings, data: Data) -> None:
        """The evaluator can serve what each stage asks of it, and shrink has something to remove."""
        evaluators = EvaluatorFactory(settings, self.blueprint, data)
        pruner: PrunerSettings | None = None
        shrinks = any(stage.name == "shrink" for stage in settings.stages)
        for stage in settings.stages:
            if isinstance(stage.compressor, PrunerSettings):
                pruner = stage.compressor
                if "hidden" in pruner.granularities and not shrinks:
                    self.fail(
                        "granularity hidden needs a shrink stage: while a width is only masked, norms must leave the "
                        "masked channels out of their statistics, and no exported file does",
                        f"stages.{stage.name}.compressor.granularity",
                    )
            if stage.name == "shrink" and pruner is not None and not pruner.prunes_channels:
                self.fail(
                    f"there is nothing to remove: the compressor's granularity is {pruner.granularity}, which only "
                    "masks; leave shrink out, or set granularity: output_channel",
                    "stages.shrink",
                )
            asked = needs(stage)
            if not asked:
                continue
            evaluator = self.attempt("evaluator", evaluators.of_stage(stage.name), silent)
            if evaluator is None:
                return
            for capability, why in asked:
                if capability in evaluator.capabilities:
                    continue
                who = f"stage {stage.name!r}" if stage.compressor is None else f"the {title(stage.compressor)}"
                if settings.evaluator.name == "torch":
                    missing, function = _GIVEN_BY[capability]
                    self.fail(f"{who} needs it, or your own {function}, {why}", f"evaluator.{missing}")
                else:
                    self.attempt("evaluator", evaluator.require, capability, by=who, why=why)

    def one_batch(self, settings: RecipeSettings, model: nn.Module, data: Data) -> None:
        """Two samples go through model, loss, metric and exporters, unless the user's own code calls the model."""
        functions, parts = self.blueprint.functions, self.blueprint.evaluator
        if settings.evaluator.name != "torch":
            self.first_inputs(settings, model, data)
            return
        if "training_func" in functions or "training_step" in functions or self.errors:
            return
        batch = self.attempt("data", two_samples, data)
        if batch is None:
            return
        inputs, targets = batch
        model.eval()
        with torch.no_grad():
            outputs = self.attempt("model", on_first_batch, predict, model, inputs)
            for name, traced in parts.items():
                if outputs is None:
                    continue
                called = self.attempt(f"evaluator.{name}", built, traced, f"evaluator.{name}")
                if called is not None:
                    self.attempt(f"evaluator.{name}", on_first_batch, called, outputs, targets)
        if not self.errors:
            self.exports(settings, model, as_call(inputs))

    def first_inputs(self, settings: RecipeSettings, model: nn.Module, data: Data) -> None:
        """The engine's training begins, as far as the model's first call, whose inputs go through the exporters.

        Two batches are measured, so that a metric which nobody logs is found now. Where the Trainer has datasets of its
        own, that could take long, and is left to the run.
        """
        stage = next((stage.name for stage in settings.stages if stage.name in self.blueprint.stages), None)
        if stage is None or self.errors:
            return
        factory = EvaluatorFactory(settings, self.blueprint, FewBatches(data))
        evaluator = self.attempt("evaluator", factory.of_stage(stage), silent)
        if evaluator is None:
            return
        inputs = self.attempt("evaluator", first_inputs, evaluator, model)
        if inputs is not None:
            self.exports(settings, model, inputs)
        own_data = {"train_dataset", "eval_dataset"} & self.blueprint.evaluator["trainer"].kwargs.keys()
        if not own_data and not self.errors:
            self.attempt("evaluator.metric", measured, evaluator, model)


_GIVEN_BY = {
    "train": ("loss", "training_step"),
    "iterate": ("loss", "training_step"),
    "evaluate": ("metric", "evaluating_func"),
    "example_inputs": ("training_step", "training_step"),
}
"""Capability of an evaluator -> the key of a recipe that gives it, and the user's function that does."""


def _treatment(settings: PrunerSettings, target: str) -> str:
    pruned = settings.targets[target]
    granularity = settings.granularity_of(pruned)
    shown = granularity if isinstance(granularity, str) else f"block {list(granularity)}"
    return shown if pruned.sparse_ratio is None else f"{shown}, sparse_ratio {pruned.sparse_ratio:g}"


def _has_missing(node: Any) -> bool:
    if isinstance(node, dict | list):
        return any(_has_missing(child) for child in (node.values() if isinstance(node, dict) else node))
    return bool(node == MISSING)
