"""The typed settings of a whole recipe, put together from the parts' own; every key and type is checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from nnicompress.config.resolve import MISSING, Resolved, SourceOf, unknown_source
from nnicompress.config.words import MISSING_VALUE, config_errors, unknown_key
from nnicompress.errors import ConfigError, InputErrors, did_you_mean
from nnicompress.evaluators.settings import ENGINES, EngineSettings
from nnicompress.pipeline.settings import (
    STAGES,
    ExportSettings,
    QuantizeSettings,
    RuntimeSettings,
    order_errors,
)
from nnicompress.pruning.settings import PrunerSettings
from nnicompress.quantization.settings import FLOATS_AGAIN, QuantizerSettings
from nnicompress.report.settings import ExpectedSettings
from nnicompress.settings import Settings

Node = dict[str, Any]
"""How to build an object: `_target_` and its arguments."""

CompressorSettings = PrunerSettings | QuantizerSettings

COMPRESSORS: dict[str, type[CompressorSettings]] = {"pruner": PrunerSettings, "quantizer": QuantizerSettings}
"""`kind` of a compressor -> its settings."""
COMPRESSES = {"prune": "pruner", "quantize": "quantizer"}
"""A stage that compresses -> the kind of its compressor."""

NODES = ("model", "data", "optimizer", "scheduler")
PARTS = ("evaluator", "compressor", "export", "runtime", "stages", "expected")


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} stands in the list twice")
    return names


class HeadSettings(Settings):
    """The settings of a recipe that belong to no part."""

    name: str = "recipe"
    summary: str = ""
    seed: int = Field(default=0, ge=0, lt=2**32)
    run_dir: str = "runs/recipe"
    logging: Annotated[tuple[Literal["csv", "tensorboard"], ...], AfterValidator(_each_once)] = ()
    """Training curves as files in the run's folder (`report/loggers.py`)."""
    save_every: int = Field(default=100, ge=0)
    """Optimizer steps between two saves of a training's state, which a killed run goes on from; 0: none."""


@dataclass(frozen=True)
class RecipeStage:
    """One stage: its settings, and the objects that it is given."""

    name: str
    settings: Settings
    optimizer: Node | None
    """None: the engine's own."""
    scheduler: Node | None
    compressor: CompressorSettings | None = None
    compressor_key: str | None = None
    """Where the compressor is written: `compressor` or `stages.prune.compressor`."""


@dataclass(frozen=True)
class RecipeSettings:
    """A whole recipe, checked."""

    head: HeadSettings
    model: Node
    data: Node
    evaluator: EngineSettings
    runtime: RuntimeSettings
    expected: ExpectedSettings
    stages: tuple[RecipeStage, ...]
    values: dict[str, Any]
    """All of it as plain values, for the manifest."""


@dataclass(frozen=True)
class Examined:
    """What is right of a recipe, and everything that is wrong: `settings` is None where there are errors."""

    settings: RecipeSettings | None
    compressors: dict[str, CompressorSettings]
    """Each compressor that is right, by its key."""
    errors: tuple[ConfigError, ...]


def examine(resolved: Resolved, source_of: SourceOf = unknown_source) -> Examined:
    """Check every key and type."""
    return _Validation(resolved, source_of).run()


def validate(resolved: Resolved, source_of: SourceOf = unknown_source) -> RecipeSettings:
    """The typed settings; raises InputErrors with every wrong key."""
    examined = examine(resolved, source_of)
    if examined.settings is None:
        raise InputErrors(examined.errors)
    return examined.settings


S = TypeVar("S", bound=Settings)


class _Validation:
    """One pass over a recipe; `errors` grows by key, and the first error of a key wins."""

    def __init__(self, resolved: Resolved, source_of: SourceOf) -> None:
        self.resolved, self.values, self.source_of = resolved, resolved.values, source_of
        self.compressors: dict[str, CompressorSettings] = {}
        self.errors: dict[str, ConfigError] = {error.key or "": error for error in resolved.errors}

    def run(self) -> Examined:
        self.missing(self.values, "")
        known = [*HeadSettings.model_fields, *NODES, *PARTS]
        for name in self.values.keys() - set(known):
            self.add(name, unknown_key(name, known), shown_key=None)
        head = self.settings(HeadSettings, {k: v for k, v in self.values.items() if k in HeadSettings.model_fields}, "")
        model, data = self.node("model", self.values.get("model")), self.node("data", self.values.get("data"))
        engine = self.engine(self.values.get("evaluator"))
        self.training_objects(engine)
        evaluator = self.settings(engine, self.values.get("evaluator"), "evaluator") if engine is not None else None
        runtime = self.settings(RuntimeSettings, self.values.get("runtime"), "runtime")
        expected = self.settings(ExpectedSettings, self.values.get("expected"), "expected")
        self.settings(ExportSettings, self.values.get("export"), "export")
        stages = self.stages(self.compressor(self.values.get("compressor"), "compressor"))
        if self.errors:
            return Examined(None, self.compressors, tuple(self.errors.values()))
        assert head and model and data and evaluator and runtime and expected
        settings = RecipeSettings(head, model, data, evaluator, runtime, expected, tuple(stages), self.values)
        return Examined(settings, self.compressors, ())

    def add(self, key: str, text: str, *, shown_key: str | None = "") -> None:
        """Record an error unless this key, or one above it, has one."""
        if not any(key == known or key.startswith(f"{known}.") for known in self.errors):
            shown = key if shown_key == "" else shown_key
            self.errors[key] = ConfigError(text, key=shown, source=self.source_of(key))

    def missing(self, node: Any, key: str) -> None:
        """Report each `???` that is left."""
        if node == MISSING:
            self.add(key, MISSING_VALUE.format(key=key))
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for name, child in items:
            self.missing(child, f"{key}.{name}" if key else str(name))

    def settings(self, model: type[S], values: Any, prefix: str) -> S | None:
        """`values` as `model`, or None with the errors recorded."""
        if isinstance(values, Mapping) and any(not isinstance(name, str) for name in values):
            values = {str(name): value for name, value in values.items()}
        try:
            return model.model_validate({} if values is None else values)
        except ValidationError as error:
            for found in config_errors(error, model, values, prefix, self.source_of):
                full_key = found.key or ""
                if "unknown key" in found.message:
                    full_key = f"{full_key}.{found.message.split(chr(39))[1]}".lstrip(".")
                if not any(full_key == known or full_key.startswith(f"{known}.") for known in self.errors):
                    self.errors[full_key] = found
            return None

    def node(self, key: str, value: Any) -> Node | None:
        """A mapping with `_target_`."""
        if isinstance(value, dict) and isinstance(value.get("_target_"), str):
            return value
        if isinstance(value, dict):
            self.add(f"{key}._target_", f"a class or function is required: {key}: {{_target_: module.Name, ...}}")
        else:
            shown = "null" if value is None else repr(value)
            self.add(key, f"{shown} is not a mapping with a _target_; choose an option of the group {key!r}")
        return None

    def engine(self, values: Any) -> type[EngineSettings] | None:
        """The settings' class of the engine that the evaluator names."""
        name = values.get("name", "torch") if isinstance(values, dict) else "torch"
        if name in ENGINES:
            return ENGINES[name]
        near = did_you_mean(str(name), ENGINES) or f"; engines: {', '.join(ENGINES)}"
        self.add("evaluator.name", f"no engine {name!r}{near}")
        return None

    def training_objects(self, engine: type[EngineSettings] | None) -> None:
        """The recipe's optimizer, which only some engines can do without, and its scheduler."""
        optimizer, scheduler = self.values.get("optimizer"), self.values.get("scheduler")
        engine_has_one = engine is None or engine.OWN_OPTIMIZER
        if optimizer is not None or not engine_has_one:
            self.node("optimizer", optimizer)
        if scheduler is not None:
            self.node("scheduler", scheduler)
            if optimizer is None and engine_has_one:
                self.add("scheduler", "it sets the rate of a recipe's optimizer, and there is none: name both or none")

    def compressor(self, values: Any, key: str) -> CompressorSettings | None:
        """The settings of one compressor, by its `kind`."""
        if values is None:
            return None
        if not isinstance(values, dict):
            self.add(key, f"{values!r} is not a mapping of settings; choose an option of the group 'compressor'")
            return None
        kind = values.get("kind", "pruner")
        if kind not in COMPRESSORS:
            near = did_you_mean(str(kind), COMPRESSORS) or f"; kinds: {', '.join(COMPRESSORS)}"
            self.add(f"{key}.kind", f"no compressor of kind {kind!r}{near}")
            return None
        settings = self.settings(COMPRESSORS[kind], values, key)
        if settings is not None:
            self.compressors[key] = settings
        return settings

    def stages(self, shared: CompressorSettings | None) -> list[RecipeStage]:
        """Each stage in order, with the compressor it uses."""
        values = self.values.get("stages")
        if not isinstance(values, dict):
            self.add("stages", "the stages are a mapping: {train: {max_epochs: 12}, prune: {}, ...}")
            return []
        told = set[str]()
        for name, text in order_errors(list(values)):
            need = text.removeprefix(repr(name))
            if need not in told:  # a recipe without `train` is one mistake, not one a stage
                self.add(f"stages.{name}" if name else "stages", text)
            told.add(need)
        found = (self.stage(name, stage, shared) for name, stage in values.items() if name in STAGES)
        stages = [stage for stage in found if stage is not None]
        keys = [stage.compressor_key for stage in stages if stage.compressor_key is not None]
        if shared is not None and "compressor" not in keys and not self.errors:
            user = next(stage for stage, kind in COMPRESSES.items() if kind == shared.kind)
            instead = [key for key in keys if key.startswith(f"stages.{user}.")]
            own = (
                f"{instead[0]} is used in its place; write the settings in one of the two"
                if instead
                else (f"add {user}: {{}}")
            )
            self.add("compressor", f"no stage uses it: {own}")
        return stages

    def stage(self, name: str, values: Any, shared: CompressorSettings | None) -> RecipeStage | None:
        key = f"stages.{name}"
        if not isinstance(values, dict):
            self.add(key, f"{values!r} is not a mapping of settings; write {{}} for a stage without any")
            return None
        settings = self.settings(STAGES[name], values, key)
        if name == "export" and settings is not None and isinstance(self.values.get("export"), dict):
            settings = self.settings(STAGES[name], {**self.values["export"], **values}, "export")
        compressor, compressor_key = None, None
        if name in COMPRESSES:
            own = values.get("compressor")
            compressor_key = "compressor" if own is None else f"{key}.compressor"
            compressor = shared if own is None else self.compressor(own, compressor_key)
            if own is None and self.values.get("compressor") is None:
                self.add(key, f"{name} needs a compressor: add compressor=NAME (ls compressor lists them)")
            elif compressor is not None and compressor.kind != COMPRESSES[name]:
                instead = f"; give the stage its own, stages.{name}.compressor" if own is None else ""
                text = f"{name} takes a {COMPRESSES[name]}, and this is a {compressor.kind}{instead}"
                self.add(f"{compressor_key}.kind", text)
            if isinstance(compressor, QuantizerSettings) and isinstance(settings, QuantizeSettings):
                self.training_length(key, compressor_key, compressor, settings)
        objects = self.resolved.stage_objects[name]
        for kind in ("optimizer", "scheduler"):
            if kind in values and getattr(objects, kind) is not None:
                self.node(f"{key}.{kind}", getattr(objects, kind))
        if settings is None:
            return None
        assert name not in COMPRESSES or compressor or self.errors
        return RecipeStage(name, settings, objects.optimizer, objects.scheduler, compressor, compressor_key)

    def training_length(
        self, key: str, compressor_key: str, quantizer: QuantizerSettings, settings: QuantizeSettings
    ) -> None:
        """A quantizer that trains is told how long; one that doesn't is not."""
        given = [name for name in ("max_epochs", "max_steps") if getattr(settings, name) is not None]
        if quantizer.trains and not given:
            self.add(key, "this quantizer trains: say how long, with max_epochs or max_steps")
        elif given and not quantizer.trains:
            self.add(f"{key}.{given[0]}", "this quantizer only calibrates and trains nothing (trains: false)")
        begins = quantizer.schedule.simulate_from
        if settings.max_steps is not None and begins >= settings.max_steps:
            self.add(
                f"{compressor_key}.schedule.simulate_from",
                f"simulated from step {begins}, a training of {settings.max_steps} steps ({key}.max_steps) never is",
            )
        if settings.max_accuracy_drop is not None and quantizer.method not in FLOATS_AGAIN:
            self.add(
                f"{key}.max_accuracy_drop",
                f"{quantizer.method} changes the weights themselves, so no layer can return to float; methods that "
                f"leave them: {', '.join(FLOATS_AGAIN)}",
            )
