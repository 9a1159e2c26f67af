"""How to build every object that a recipe names: each `_target_` resolved, checked and bound, nothing called yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nnicompress.config.bind import bind, function
from nnicompress.config.resolve import Resolved, SourceOf, StageObjects, unknown_source
from nnicompress.errors import ConfigError, InputErrors, UserError
from nnicompress.evaluators.optimizers import OptimizerSpec, check_optimizer_class
from nnicompress.evaluators.scheduling import FILLED
from nnicompress.evaluators.settings import ENGINES, EngineSettings, EvaluatorSettings
from nnicompress.trace import Traced

Interval = Literal["step", "epoch"]


@dataclass(frozen=True)
class StageBlueprint:
    """A stage's optimizer and scheduler, and after what the scheduler is stepped."""

    optimizer: OptimizerSpec | None
    """None: the engine's own."""
    scheduler: Traced | None
    interval: Interval


@dataclass(frozen=True)
class Blueprint:
    """All objects of a recipe; None stands for what the recipe doesn't name, or what is wrong and in `errors`."""

    model: Traced | None
    data: Traced | None
    evaluator: Mapping[str, Traced]
    """The evaluator's parts (`loss`, `metric`, `trainer` ...), where the recipe says how to build them."""
    functions: Mapping[str, Callable[..., Any]]
    """The user's own functions (`training_func`, `evaluating_func` ...), where the recipe names them."""
    stages: Mapping[str, StageBlueprint]
    errors: tuple[ConfigError, ...] = field(default=())


def draw(resolved: Resolved, source_of: SourceOf = unknown_source) -> Blueprint:
    """The blueprint of a recipe, with all its errors; nodes that the schema refuses are passed over."""
    return _Drawing(source_of).draw(resolved)


class _Drawing:
    def __init__(self, source_of: SourceOf) -> None:
        self.source_of, self.errors = source_of, list[ConfigError]()

    def draw(self, resolved: Resolved) -> Blueprint:
        values = resolved.values
        evaluator = values.get("evaluator")
        evaluator = evaluator if isinstance(evaluator, dict) else {}
        # An engine of no known name is the schema's error; the torch engine's keys do no harm then.
        engine = ENGINES.get(str(evaluator.get("name", "torch")), EvaluatorSettings)
        shared = self.stage(
            StageObjects(values.get("optimizer"), values.get("scheduler")), "", {"optimizer", "scheduler"}
        )
        return Blueprint(
            model=self.node(values.get("model"), "model"),
            data=self.node(values.get("data"), "data"),
            evaluator=self.parts(evaluator, engine),
            functions=self.functions(evaluator, engine.FUNCTIONS),
            stages=self.stages(resolved, shared),
            errors=tuple(self.errors),
        )

    def stages(self, resolved: Resolved, shared: StageBlueprint | None) -> dict[str, StageBlueprint]:
        """Each stage's own objects where it changes them, else the recipe's."""
        found = {}
        for name, objects in resolved.stage_objects.items():
            own = {"optimizer", "scheduler"} & resolved.values["stages"][name].keys()
            # What is wrong with the recipe's own is told once; the stage would only repeat it.
            stage = self.stage(objects, f"stages.{name}.", own) if own and shared is not None else shared
            if stage is not None:
                found[name] = stage
        return found

    def stage(self, objects: StageObjects, prefix: str, own: Iterable[str]) -> StageBlueprint | None:
        keys = {kind: f"{prefix}{kind}" if kind in own else kind for kind in ("optimizer", "scheduler")}
        before = len(self.errors)
        optimizer = self.optimizer(objects.optimizer, keys["optimizer"])
        scheduler, interval = None, self.interval(objects.scheduler, keys["scheduler"])
        if isinstance(objects.scheduler, dict):
            key = keys["scheduler"]
            scheduler = self.node(objects.scheduler, key, positional=("optimizer",), filled=FILLED, own=("interval",))
        if len(self.errors) > before or (optimizer is None and objects.optimizer is not None):
            return None
        return StageBlueprint(optimizer, scheduler, interval)

    def optimizer(self, node: Any, key: str) -> OptimizerSpec | None:
        traced = self.node(node, key, positional=("params",), own=("param_groups",))
        groups = node.get("param_groups") if isinstance(node, dict) else None
        if not isinstance(groups, list | None) or not all(isinstance(group, dict) for group in groups or []):
            self.fail(f"{groups!r} is not a list of {{params_re: REGEX, ...}}", f"{key}.param_groups")
        elif traced is not None:
            try:
                check_optimizer_class(traced)
            except UserError as error:
                self.fail(str(error).removeprefix("optimizers: "), f"{key}._target_")
            else:
                return OptimizerSpec(traced, tuple(groups or ()))
        return None

    def interval(self, node: Any, key: str) -> Interval:
        interval = node.get("interval", "step") if isinstance(node, dict) else "step"
        if interval not in ("step", "epoch"):
            self.fail(f"{interval!r} is not 'step' or 'epoch'", f"{key}.interval")
        return "epoch" if interval == "epoch" else "step"

    def parts(self, evaluator: Mapping[str, Any], engine: type[EngineSettings]) -> dict[str, Traced]:
        nodes = {
            name: self.node(
                evaluator.get(name),
                f"evaluator.{name}",
                positional=("model",) if name in engine.AROUND_MODEL else (),
            )
            for name in engine.NODES
        }
        return {name: traced for name, traced in nodes.items() if traced is not None}

    def functions(self, evaluator: Mapping[str, Any], names: Iterable[str]) -> dict[str, Callable[..., Any]]:
        found = {}
        for name in names:
            if isinstance(dotted := evaluator.get(name), str):
                try:
                    found[name] = function(dotted, key=f"evaluator.{name}", source_of=self.source_of)
                except ConfigError as error:
                    self.errors.append(error)
        return found

    def node(self, node: Any, key: str, **kwargs: Any) -> Traced | None:
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            return None
        try:
            return bind(node, key=key, source_of=self.source_of, **kwargs)
        except InputErrors as error:
            self.errors += [found for found in error.errors if isinstance(found, ConfigError)]
            return None

    def fail(self, text: str, key: str) -> None:
        self.errors.append(ConfigError(text, key=key, source=self.source_of(key)))
