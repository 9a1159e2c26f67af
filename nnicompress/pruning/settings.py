"""The settings of a pruner: targets, importance, granularity, allocation, schedule. Imports neither torch nor hydra."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from nnicompress.errors import ConfigError, InputErrors, UserError, did_you_mean
from nnicompress.settings import Settings

IMPORTANCE_NAMES = ("taylor", "l1", "l2", "level", "random")
WIDTH_KINDS = ("heads", "head_dim", "ffn", "hidden")
"""Granularities that name what a width is for: channels of that kind alone are pruned."""
CHANNEL_GRANULARITIES = ("output_channel", "input_channel", *WIDTH_KINDS)
GRANULARITY_NAMES = ("element", *CHANNEL_GRANULARITIES)


def _ratio(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{value:g} is outside [0, 1)")
    return value


def _bound(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{value:g} is outside [0, 1]")
    return value


def _positive(value: int) -> int:
    if value < 1:
        raise ValueError(f"{value} is below 1")
    return value


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _patterns(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
    return values


def _granularity(value: object) -> object:
    if isinstance(value, str):
        if value not in GRANULARITY_NAMES:
            hint = did_you_mean(value, GRANULARITY_NAMES)
            names = ", ".join(GRANULARITY_NAMES)
            raise ValueError(f"no granularity named {value!r}{hint}; known: {names}, or a block like [4, 4]")
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if not value or not all(type(length) is int and (length >= 1 or length == -1) for length in value):
            raise ValueError(
                f"{list(value)} is not a block: it takes lengths of at least 1, or -1 for a whole dimension"
            )
        return tuple(value)
    raise ValueError(f"{value!r} is no granularity; known: {', '.join(GRANULARITY_NAMES)}, or a block like [4, 4]")


Ratio = Annotated[float, AfterValidator(_ratio)]
Bound = Annotated[float, AfterValidator(_bound)]
Count = Annotated[int, AfterValidator(_positive)]
Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Patterns = Annotated[Names, AfterValidator(_patterns)]
Granularity = Annotated[str | tuple[int, ...], BeforeValidator(_granularity)]
"""`element`, `output_channel`, `input_channel`, one of WIDTH_KINDS, or a block's length along each dimension."""
GroupId = int | str


class ImportanceSettings(Settings):
    """How much the network would miss a weight or a channel group."""

    name: str = "taylor"
    training_steps: Count = 20
    """Batches over which gradients are gathered, where the importance needs them; no weight changes meanwhile."""
    aggregation: Literal["sum_of_squares", "square_of_sum"] = "sum_of_squares"
    """For `taylor`: the sum over a channel group of (gradient * weight) squared, or the square of the sum.

    Both are averaged over the batches (Molchanov et al. 2019).
    """
    scope: Literal["producers", "consumers", "group"] | None = None
    """Which weights of a channel group count: those that produce it, those that read it, or all. null: `producers` for
    l1 and l2 (Li et al. 2017), `consumers` for `square_of_sum`, else `group`."""
    seed: int | None = None
    """For `random`; null: PyTorch's global generator, which a run's seed sets."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in IMPORTANCE_NAMES:
            hint = did_you_mean(self.name, IMPORTANCE_NAMES)
            raise ValueError(f"no importance named {self.name!r}{hint}; known: {', '.join(IMPORTANCE_NAMES)}")
        return self


class AllocationSettings(Settings):
    """How many channel groups (or weights) each layer loses."""

    name: Literal["uniform", "global"] = "uniform"
    """`uniform`: each loses its own `sparse_ratio`; `global`: all of a target compete on importance."""
    round_to: Annotated[int, AfterValidator(_positive)] | Literal["auto"] = "auto"
    """Kept widths are multiples of this many channels. `auto`: the greatest power of two up to an eighth of the width,
    at most 16."""
    normalize: Literal["mean", "max", "none"] | None = None
    """What the scores of one width are divided by before widths compete. null: `mean` for channels, `none` for single
    weights and blocks."""


class ScheduleSettings(Settings):
    """How the sparsity grows; every ratio is relative to the unpruned model."""

    name: Literal["one_shot", "linear", "agp"] = "one_shot"
    """`agp` grows as 1 - (1 - t)^3 (Zhu and Gupta 2017)."""
    total_times: Count | None = None
    """How many times something is removed."""
    interval_steps: Count | None = None
    """Optimizer steps of training between two removals; each interval is a training with a fresh optimizer."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = {"total_times": self.total_times, "interval_steps": self.interval_steps}
        if self.name == "one_shot" and (extra := [key for key, value in given.items() if value is not None]):
            raise ValueError(f"one_shot takes no {' and no '.join(extra)}; name: linear or agp does")
        if self.name != "one_shot" and (missing := [key for key, value in given.items() if value is None]):
            raise ValueError(f"{self.name} needs {' and '.join(missing)}")
        return self


class TensorSettings(Settings):
    """What is asked of one tensor; in `target_settings` each key given replaces the target's own."""

    sparse_ratio: Ratio | None = None
    """The share to remove, relative to the unpruned model."""
    min_sparse_ratio: Ratio | None = None
    """Each width (or tensor) loses at least this share."""
    max_sparse_ratio: Bound | None = None
    """Each width loses at most this share, and never all. null: 0.95 (or `sparse_ratio` where that is more) for
    channels, no bound for single weights."""
    granularity: Granularity | None = None
    """null: the pruner's."""
    global_group_id: GroupId | None = None
    """With allocation `global`: targets of one id compete with each other, not only within themselves."""
    dependency_group_id: GroupId | None = None
    """Widths of targets with one id lose the same indices; their sizes must be equal."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, ask, high = self.min_sparse_ratio, self.sparse_ratio, self.max_sparse_ratio
        for (name, smaller), (other, larger) in (
            (("min_sparse_ratio", low), ("sparse_ratio", ask)),
            (("sparse_ratio", ask), ("max_sparse_ratio", high)),
            (("min_sparse_ratio", low), ("max_sparse_ratio", high)),
        ):
            if smaller is not None and larger is not None and smaller > larger:
                raise ValueError(f"{name} {smaller:g} is above {other} {larger:g}")
        return self


class TargetSettings(TensorSettings):
    """Which modules to prune, and how much of them.

    Selected are the modules whose type is in `op_types` (or derives from one of them) and, where names are given, whose
    name is in `op_names` or matches one of `op_names_re` (from its start, as `re.match`), less the excluded ones.
    """

    op_types: Names = ()
    op_names: Names = ()
    op_names_re: Patterns = ()
    exclude_op_types: Names = ()
    exclude_op_names: Names = ()
    exclude_op_names_re: Patterns = ()
    target_names: Names = ("weight",)
    """Parameters of the selected modules."""
    target_settings: dict[str, TensorSettings] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not (self.op_types or self.op_names or self.op_names_re):
            raise ValueError("a target needs op_types, op_names or op_names_re")
        if not self.target_names:
            raise ValueError("target_names is empty")
        for name in self.target_settings:
            if name not in self.target_names:
                hint = did_you_mean(name, self.target_names)
                raise ValueError(f"target_settings has {name!r}, which is not in target_names{hint}")
        for name in self.target_names:
            try:
                asked = self.of_tensor(name)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"target_settings.{name}: {reason}") from error
            if asked.sparse_ratio is None:
                raise ValueError("sparse_ratio is missing")
        return self

    def of_tensor(self, name: str) -> TensorSettings:
        """What is asked of parameter `name`, its `target_settings` merged in."""
        own = {key: getattr(self, key) for key in TensorSettings.model_fields}
        special = self.target_settings.get(name)
        if special is not None:
            own |= {key: getattr(special, key) for key in special.model_fields_set}
        return TensorSettings(**own)


class PrunerSettings(Settings):
    """A pruner: importance x granularity x allocation x schedule, over targets."""

    kind: Literal["pruner"] = "pruner"
    importance: Annotated[ImportanceSettings, BeforeValidator(_named)] = Field(default_factory=ImportanceSettings)
    granularity: Granularity = "output_channel"
    allocation: Annotated[AllocationSettings, BeforeValidator(_named)] = Field(default_factory=AllocationSettings)
    schedule: Annotated[ScheduleSettings, BeforeValidator(_named)] = Field(default_factory=ScheduleSettings)
    targets: dict[str, TargetSettings]
    outputs: Names = ()
    """Entries of the model's result that must keep their sizes, e.g. `logits`; none: all. An encoder's hidden states,
    which a model returns besides its logits, otherwise keep the hidden width whole."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.targets:
            raise ValueError("targets is empty: a pruner needs at least one")
        if {"heads", "head_dim"} <= self.granularities:
            raise ValueError("heads and head_dim can't be pruned at once; prune one, shrink, then prune the other")
        for name, target in self.targets.items():
            for tensor in target.target_names:
                asked = target.of_tensor(tensor)
                if asked.global_group_id is not None and self.allocation.name != "global":
                    raise ValueError(f"targets.{name} has a global_group_id, which needs allocation: {{name: global}}")
                if asked.dependency_group_id is not None and self.granularity_of(asked) not in CHANNEL_GRANULARITIES:
                    raise ValueError(f"targets.{name} has a dependency_group_id, which only channel granularities take")
        return self

    def granularity_of(self, tensor: TensorSettings) -> str | tuple[int, ...]:
        """The granularity of one tensor's settings: its own or the pruner's."""
        return self.granularity if tensor.granularity is None else tensor.granularity

    @property
    def granularities(self) -> frozenset[str | tuple[int, ...]]:
        """All granularities in use."""
        return frozenset(
            self.granularity_of(target.of_tensor(tensor))
            for target in self.targets.values()
            for tensor in target.target_names
        )

    @property
    def prunes_channels(self) -> bool:
        """Whether any target prunes whole channels."""
        return bool(self.granularities & set(CHANNEL_GRANULARITIES))

    @classmethod
    def from_targets(
        cls, targets: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]], **settings: Any
    ) -> Self:
        """Settings from a list of dicts, one a target, as Python users write them; targets are named `0`, `1` ...

        `settings` are the other keys, e.g. `importance="l1", allocation={"name": "global"}`.

        Raises:
            InputErrors: every wrong key or value, each with its dotted key.
        """
        named = targets if isinstance(targets, Mapping) else {str(i): target for i, target in enumerate(targets)}
        try:
            return cls.model_validate({"targets": named, **settings})
        except ValidationError as error:
            raise InputErrors(_config_errors(error)) from error


def _config_errors(error: ValidationError) -> list[UserError]:
    known = {key for group in _GROUPS for key in group.model_fields}
    errors: list[UserError] = []
    for detail in error.errors():
        *parents, last = (str(part) for part in detail["loc"]) if detail["loc"] else ("",)
        key = ".".join([*parents, last]) or None
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = f"unknown key{did_you_mean(last, known)}"
        errors.append(ConfigError(message, key=key))
    return errors


_GROUPS: tuple[type[Settings], ...] = (
    PrunerSettings,
    TargetSettings,
    ImportanceSettings,
    AllocationSettings,
    ScheduleSettings,
)
