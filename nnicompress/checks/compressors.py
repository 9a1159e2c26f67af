"""What each compressor of a recipe would do with the model, planned on its first batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from torch import nn

from nnicompress.checks.exports import asked_formats
from nnicompress.checks.findings import Findings
from nnicompress.checks.outcome import TargetMatch
from nnicompress.checks.probe import on_first_batch
from nnicompress.config.blueprint import Blueprint
from nnicompress.config.resolve import Resolved
from nnicompress.config.schema import RecipeSettings, RecipeStage
from nnicompress.data.roles import Data
from nnicompress.engines import EvaluatorFactory
from nnicompress.errors import ConfigError, JobError, UserError
from nnicompress.evaluators.contract import Evaluator
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.settings import EvaluatorSettings
from nnicompress.events import silent
from nnicompress.export.formats import FORMATS
from nnicompress.graph.widths import UNITS
from nnicompress.pipeline.settings import QuantizeSettings
from nnicompress.pipeline.smoke import FewBatches
from nnicompress.pruning import plan as pruning_plan
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.settings import WIDTH_KINDS, PrunerSettings
from nnicompress.quantization.lowering import NO_BLOCKS
from nnicompress.quantization.plan import Plan
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.settings import QuantizerSettings
from nnicompress.settings import Settings

PlanT = TypeVar("PlanT", covariant=True)
SettingsT = TypeVar("SettingsT", bound=Settings)


def check_pruners(
    findings: Findings,
    blueprint: Blueprint,
    settings: RecipeSettings,
    model: nn.Module,
    data: Data,
    targets: tuple[TargetMatch, ...],
) -> tuple[TargetMatch, ...]:
    """Each pruner finds what it is asked for; `targets` with the widths that they come to."""
    for key, pruner, plan in _planned(findings, blueprint, settings, model, data, PrunerSettings, Pruner):
        targets = tuple(_with_widths(match, key, pruner, plan) for match in targets)
    return targets


def check_quantizers(
    findings: Findings,
    blueprint: Blueprint,
    resolved: Resolved,
    settings: RecipeSettings,
    model: nn.Module,
    data: Data,
) -> tuple[TargetMatch, ...]:
    """Each quantizer finds a place for all that it is asked for, and the runtime can run that in integers."""
    if findings.errors:
        return ()
    found = []
    for key, quantizer, plan in _planned(findings, blueprint, settings, model, data, QuantizerSettings, Quantizer):
        _blocks_in_files(findings, resolved, settings, plan)
        found.append(_quantized(key, quantizer, plan))
    for stage in settings.stages:
        if isinstance(stage.compressor, QuantizerSettings):
            _is_simulated(findings, settings, stage, stage.compressor, data)
    return tuple(found)


def _planned(
    findings: Findings,
    blueprint: Blueprint,
    settings: RecipeSettings,
    model: nn.Module,
    data: Data,
    kind: type[SettingsT],
    compressor: Callable[[SettingsT, Evaluator], _Plans[PlanT]],
) -> Iterator[tuple[str, SettingsT, PlanT]]:
    """Of each stage with a compressor of this kind: its key, its settings, and what it would do; up to an error."""
    factory = EvaluatorFactory(settings, blueprint, FewBatches(data))
    for stage in settings.stages:
        own, key = stage.compressor, stage.compressor_key or "compressor"
        if not isinstance(own, kind) or findings.errors:
            continue
        evaluator = findings.attempt("evaluator", factory.of_stage(stage.name), silent)
        if evaluator is not None:
            plan = findings.attempt(key, _plan, key, compressor(own, evaluator), model)
            if plan is not None:
                yield key, own, plan


def _is_simulated(
    findings: Findings, settings: RecipeSettings, stage: RecipeStage, quantizer: QuantizerSettings, data: Data
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
        findings.fail(
            f"simulated from step {begins}, a training of {steps * own.max_epochs} steps "
            f"(stages.{stage.name}.max_epochs) never is",
            f"{stage.compressor_key}.schedule.simulate_from",
        )


def _blocks_in_files(findings: Findings, resolved: Resolved, settings: RecipeSettings, plan: Plan) -> None:
    """No file is asked for that can't hold the weights' scales."""
    block = next((weight for weight in plan.weights if weight.scheme.granularity.kind == "block"), None)
    for key, form in asked_formats(settings, resolved):
        if block is not None and form is FORMATS["onnx"]:
            findings.fail(f"{block.module} has one scale a block, {NO_BLOCKS}", key)


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
    what = f"{settings.method} for {settings.backend}"
    return TargetMatch(key, what, tuple(plan.layers), tensors, in_float=tuple(plan.unquantized))
