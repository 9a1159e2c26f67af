"""Everything that can be known of a recipe without training it: all that is wrong at once, or what it will do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

import torch
from torch import nn

from nnicompress.checks.exports import as_call, asked_formats, exports
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
from nnicompress.config.schema import CompressorSettings, RecipeSettings, RecipeStage, examine
from nnicompress.data.roles import Data
from nnicompress.engines import EvaluatorFactory
from nnicompress.errors import ConfigError, InputErrors, JobError, UserError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.settings import EvaluatorSettings
from nnicompress.evaluators.training_step import predict
from nnicompress.events import silent
from nnicompress.export.formats import FORMATS
from nnicompress.export.inference import inference_facts
from nnicompress.factory import build_data, built
from nnicompress.graph.widths import UNITS
from nnicompress.models.outputs import class_name
from nnicompress.pipeline.run_dir import refuse_unusable
from nnicompress.pipeline.seeding import resolve_device
from nnicompress.pipeline.settings import QuantizeSettings, StartSettings
from nnicompress.pipeline.smoke import FewBatches
from nnicompress.pipeline.stages.start import load_weights, read_checkpoint
from nnicompress.pruning import plan as pruning_plan
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.settings import WIDTH_KINDS, PrunerSettings
from nnicompress.pruning.targets import select
from nnicompress.quantization.lowering import NO_BLOCKS
from nnicompress.quantization.placement import Plan
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.settings import QuantizerSettings
from nnicompress.report.loggers import require_packages
from nnicompress.sensitivity.kinds import requirements
from nnicompress.sensitivity.settings import SensitivitySettings
from nnicompress.shrink.description import storable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nnicompress.config.locate import Origin

T = TypeVar("T")
P = ParamSpec("P")
PlanT = TypeVar("PlanT", covariant=True)


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


class _Check:
    def __init__(self, resolved: Resolved, origin: Origin | None) -> None:
        self.source_of: SourceOf = origin.source_of if origin else unknown_source
        self.resolved = resolved
        self.examined = examine(resolved, self.source_of)
        self.blueprint = draw(resolved, self.source_of)
        self.errors: list[UserError] = [*self.examined.errors, *self.blueprint.errors]

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
                    targets = self.pruners(settings, model, data, targets)
                    targets += self.quantizers(settings, model, data)
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
            stages=tuple(_describe(settings)),
            targets=targets,
        )

    def attempt(self, key: str, action: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T | None:
        """`action(...)`, or None where the user's input makes it fail, which is recorded as about `key`."""
        try:
            return action(*args, **kwargs)
        except InputErrors as several:
            self.errors += several.errors
        except ConfigError as error:
            own_key = error.key or key
            self.errors.append(ConfigError(error.message, key=own_key, source=error.source or self.source_of(own_key)))
        except UserError as error:
            self.errors.append(ConfigError(str(error), key=key, source=self.source_of(key)))
        return None

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
            asked = _needs(stage)
            if not asked:
                continue
            evaluator = self.attempt("evaluator", evaluators.of_stage(stage.name), silent)
            if evaluator is None:
                return
            for capability, why in asked:
                if capability in evaluator.capabilities:
                    continue
                who = f"stage {stage.name!r}" if stage.compressor is None else f"the {_title(stage.compressor)}"
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

    def pruners(
        self, settings: RecipeSettings, model: nn.Module, data: Data, targets: tuple[TargetMatch, ...]
    ) -> tuple[TargetMatch, ...]:
        """Each pruner finds what it is asked for; `targets` with the widths that they come to."""
        factory = EvaluatorFactory(settings, self.blueprint, FewBatches(data))
        for stage in settings.stages:
            if not isinstance(stage.compressor, PrunerSettings) or self.errors:
                continue
            evaluator = self.attempt("evaluator", factory.of_stage(stage.name), silent)
            if evaluator is not None:
                key = stage.compressor_key or "compressor"
                plan = self.attempt(key, _plan, key, Pruner(stage.compressor, evaluator), model)
                if plan is not None:
                    targets = tuple(_with_widths(match, key, stage.compressor, plan) for match in targets)
        return targets

    def quantizers(self, settings: RecipeSettings, model: nn.Module, data: Data) -> tuple[TargetMatch, ...]:
        """Each quantizer finds a place for all that it is asked for, and the runtime can run that in integers."""
        found = []
        factory = EvaluatorFactory(settings, self.blueprint, FewBatches(data))
        for stage in settings.stages:
            if not isinstance(stage.compressor, QuantizerSettings) or self.errors:
                continue
            evaluator = self.attempt("evaluator", factory.of_stage(stage.name), silent)
            if evaluator is not None:
                key = stage.compressor_key or "compressor"
                self.is_simulated(settings, stage, stage.compressor, data)
                plan = self.attempt(key, _plan, key, Quantizer(stage.compressor, evaluator), model)
                if plan is not None:
                    self.blocks_in_files(settings, plan)
                    found.append(_quantized(key, stage.compressor, plan))
        return tuple(found)

    def is_simulated(
        self, settings: RecipeSettings, stage: RecipeStage, quantizer: QuantizerSettings, data: Data
    ) -> None:
        """A training of epochs by the shipped loop, whose steps are known, lasts until something is simulated."""
        engine, own = settings.evaluator, stage.settings
        assert isinstance(own, QuantizeSettings)
        begins = quantizer.schedule.simulate_from
        if (
            not isinstance(engine, EvaluatorSettings)
            or engine.training_func is not None
            or not own.max_epochs
            or not begins
        ):
            return
        steps = TrainingLoop(data.train_loader, seed=settings.head.seed, accumulate=engine.accumulate).steps_per_epoch
        if steps is not None and begins >= steps * own.max_epochs:
            self.fail(
                f"simulated from step {begins}, a training of {steps * own.max_epochs} steps "
                f"(stages.{stage.name}.max_epochs) never is",
                f"{stage.compressor_key}.schedule.simulate_from",
            )

    def blocks_in_files(self, settings: RecipeSettings, plan: Plan) -> None:
        """No file is asked for that can't hold the weights' scales."""
        block = next((weight for weight in plan.weights if weight.scheme.granularity.kind == "block"), None)
        for key, form in asked_formats(settings, self.resolved):
            if block is not None and form is FORMATS["onnx"]:
                self.fail(f"{block.module} has one scale a block, {NO_BLOCKS}", key)

    def fail(self, text: str, key: str) -> None:
        self.errors.append(ConfigError(text, key=key, source=self.source_of(key)))


_GIVEN_BY = {
    "train": ("loss", "training_step"),
    "iterate": ("loss", "training_step"),
    "evaluate": ("metric", "evaluating_func"),
    "example_inputs": ("training_step", "training_step"),
}
"""Capability of an evaluator -> the key of a recipe that gives it, and the user's function that does."""


class _Plans(Protocol[PlanT]):
    """A pruner or a quantizer."""

    settings: Any

    def check(self, model: nn.Module) -> PlanT:
        """What it would do."""


def _with_widths(match: TargetMatch, key: str, settings: PrunerSettings, plan: pruning_plan.Plan) -> TargetMatch:
    """A target that names a kind of width, with its widths, and of its modules only those that produce them."""
    own = [width for width in plan.widths if match.key == f"{key}.targets.{width.target}"]
    found = [width for width in own if settings.granularity_of(width.settings) in WIDTH_KINDS]
    if not found:
        return match
    by_size: dict[str, list[str]] = {}
    for width in (target.width for target in found):
        by_size.setdefault(f"{width.size} {UNITS[width.kind]}", []).append(width.name)
    modules = {module for width in found for module in width.modules}
    return replace(
        match,
        modules=tuple(module for module in match.modules if module in modules),
        widths=tuple(f"{count}: {', '.join(names)}" for count, names in by_size.items()),
    )


def _treatment(settings: PrunerSettings, target: str) -> str:
    pruned = settings.targets[target]
    granularity = settings.granularity_of(pruned)
    shown = granularity if isinstance(granularity, str) else f"block {list(granularity)}"
    return shown if pruned.sparse_ratio is None else f"{shown}, sparse_ratio {pruned.sparse_ratio:g}"


def _plan(key: str, compressor: _Plans[PlanT], model: nn.Module) -> PlanT:
    """What `compressor` would do, its errors with the keys of the recipe."""
    try:
        return on_first_batch(_checked, compressor, model)  # type: ignore[no-any-return]
    except ConfigError as error:  # a compressor knows its own keys, not where they are written
        own = error.key is not None and error.key.partition(".")[0] in type(compressor.settings).model_fields
        raise ConfigError(error.message, key=f"{key}.{error.key}" if own else error.key) from error


def _checked(compressor: _Plans[PlanT], model: nn.Module) -> PlanT:
    try:
        return compressor.check(model)
    except JobError as error:  # known before the job begins, so it is the input's
        raise UserError(str(error)) from error


def _quantized(key: str, settings: QuantizerSettings, plan: Plan) -> TargetMatch:
    counts = {"weight": len(plan.weights), "activation": len(plan.activations), "bias": len(plan.biases)}
    tensors = tuple(f"{count} {word}{'es' if word == 'bias' else 's'}" for word, count in counts.items() if count)
    return TargetMatch(key, f"{settings.method} for {settings.backend}", tuple(plan.layers), tensors)


def _title(compressor: CompressorSettings) -> str:
    if isinstance(compressor, PrunerSettings):
        return f"{compressor.importance.name} pruner"
    return f"{compressor.method} quantizer"


def _needs(stage: RecipeStage) -> tuple[tuple[str, str], ...]:
    if isinstance(stage.compressor, PrunerSettings):
        return Pruner.requirements(stage.compressor)
    if isinstance(stage.compressor, QuantizerSettings):
        needs = Quantizer.requirements(stage.compressor)
        if isinstance(stage.settings, QuantizeSettings) and stage.settings.max_accuracy_drop is not None:
            needs += (("evaluate", "to keep the metric within max_accuracy_drop"),)
        return needs
    if isinstance(stage.settings, SensitivitySettings):
        return requirements(stage.settings)
    return {
        "train": (("train", "to train the model"),),
        "finetune": (("train", "to train the model"),),
        "evaluate": (("evaluate", "to measure the model"),),
    }.get(stage.name, ())


def _describe(settings: RecipeSettings) -> Iterator[StageCheck]:
    for stage in settings.stages:
        given = stage.settings.model_dump(exclude_defaults=True, exclude={"compressor"})
        words = [f"{name}: {value}" for name, value in given.items()]
        if isinstance(pruner := stage.compressor, PrunerSettings):
            words = [
                f"{pruner.importance.name} importance, {pruner.allocation.name} allocation, {pruner.schedule.name}"
            ]
        elif isinstance(quantizer := stage.compressor, QuantizerSettings):
            words = [f"{quantizer.method} for {quantizer.backend}", *words]
        yield StageCheck(stage.name, ", ".join(words), _needs(stage))


def _has_missing(node: Any) -> bool:
    if isinstance(node, dict | list):
        return any(_has_missing(child) for child in (node.values() if isinstance(node, dict) else node))
    return bool(node == MISSING)
