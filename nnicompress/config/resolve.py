"""A composed config as plain values: interpolations resolved, presets' dropped entries gone, stages filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from nnicompress.errors import ConfigError

MISSING = "???"
TRAINING_OBJECTS = ("optimizer", "scheduler")

SourceOf = Callable[[str], str | None]
"""A dotted key -> where it was written (`recipes/mine.yaml:14`, `command line`), where known."""


def unknown_source(key: str) -> str | None:
    """The SourceOf of a config whose origin nobody recorded."""
    return None


@dataclass(frozen=True)
class StageObjects:
    """The optimizer and the scheduler of one stage: the recipe's, with what the stage changes merged in."""

    optimizer: Any
    scheduler: Any


@dataclass(frozen=True)
class Resolved:
    """`values` is the whole config as plain values; a required value that nobody gave stays `???`."""

    values: dict[str, Any]
    stage_objects: dict[str, StageObjects]
    errors: tuple[ConfigError, ...]


def resolve(cfg: DictConfig, source_of: SourceOf = unknown_source) -> Resolved:
    """Resolve everything, collecting the interpolations that lead nowhere.

    A stage's `optimizer` and `scheduler` are merged over the recipe's before interpolations are resolved, so that
    `max_lr: ${optimizer.lr}` follows the stage's own rate. Where a stage names another `_target_`, its settings
    replace the recipe's instead.
    """
    plain = _Plain(source_of)
    values = plain.values(cfg, "")
    assert isinstance(values, dict)
    stages = values.get("stages")
    objects: dict[str, StageObjects] = {}
    if isinstance(stages, dict):
        for name, stage in stages.items():
            stages[name] = {} if stage is None else stage  # `shrink:` with nothing behind it
            if isinstance(stages[name], dict):
                objects[name] = _objects_of_stage(cfg, name, stages[name], plain)
        _drop_null_targets(values, stages)
    return Resolved(values, objects, tuple(plain.errors.values()))


@dataclass(frozen=True)
class _Plain:
    """Turns a config's nodes into plain values and keeps what can't be resolved, by key."""

    source_of: SourceOf
    errors: dict[str, ConfigError] = field(default_factory=dict)

    def values(self, node: Any, key: str) -> Any:
        if not isinstance(node, DictConfig | ListConfig):
            return node
        if node._is_missing():
            return MISSING
        if node._is_none():
            return None
        if isinstance(node, DictConfig):
            names: list[Any] = list(node)  # numbers, too: YAML has keys of other types
            return {str(name): self.value(node, name, f"{key}.{name}" if key else str(name)) for name in names}
        return [self.value(node, index, f"{key}.{index}") for index in range(len(node))]

    def value(self, parent: DictConfig | ListConfig, name: Any, key: str) -> Any:
        if OmegaConf.is_missing(parent, name):
            return MISSING
        try:
            return self.values(parent[name], key)
        except InterpolationToMissingValueError:
            return MISSING  # the missing value is reported at its own key
        except OmegaConfBaseException as error:
            written = cast(Any, OmegaConf.to_container(parent, resolve=False))
            reason = str(error).strip().partition("\n")[0]
            text = f"{written[name]!r} can't be resolved: {reason}"
            self.errors.setdefault(key, ConfigError(text, key=key, source=self.source_of(key)))
            return MISSING


def _objects_of_stage(cfg: DictConfig, name: str, stage: Mapping[str, Any], plain: _Plain) -> StageObjects:
    variant = cfg.copy()
    OmegaConf.set_struct(variant, False)
    own = [kind for kind in TRAINING_OBJECTS if kind in stage]
    for kind in own:
        changes, base = variant.stages[name][kind], variant.get(kind)
        if isinstance(changes, DictConfig) and isinstance(base, DictConfig) and not _replaces(changes, base):
            changes = OmegaConf.merge(base, changes)
        OmegaConf.update(variant, kind, changes, merge=False)
    found: dict[str, Any] = {}
    for kind in TRAINING_OBJECTS:
        # What the recipe itself says is reported once, at the recipe's key.
        reporter = plain if own else _Plain(plain.source_of)
        found[kind] = reporter.values(variant.get(kind), f"stages.{name}.{kind}" if kind in own else kind)
    return StageObjects(**found)


def _replaces(changes: DictConfig, base: DictConfig) -> bool:
    target = changes.get("_target_")
    return target is not None and target != base.get("_target_")


def _drop_null_targets(values: dict[str, Any], stages: Mapping[str, Any]) -> None:
    """`targets: {convs: null}` in a recipe drops the target `convs` of the preset."""
    own = (stage.get("compressor") for stage in stages.values() if isinstance(stage, dict))
    compressors = [values.get("compressor"), *own]
    for compressor in compressors:
        if isinstance(compressor, dict) and isinstance(targets := compressor.get("targets"), dict):
            compressor["targets"] = {name: target for name, target in targets.items() if target is not None}
