"""The settings of a pruner: targets, importance, granularity, allocation, schedule. Imports neither torch nor hydra."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from nnicompress.errors import did_you_mean
from nnicompress.settings import Settings
from nnicompress.target_settings import with_targets

IMPORTANCE_NAMES = (
    "taylor", "taylor_bn", "l1", "l2", "level", "lamp", "fpgm", "slim", "apoz", "mean_activation", "wanda", "movement",
    "soft_movement", "random",
)  # fmt: skip
CHANNEL_IMPORTANCES = ("taylor_bn", "fpgm", "slim", "apoz", "mean_activation")
"""They score whole channels, and no single weights."""
INPUT_IMPORTANCES = ("apoz", "mean_activation", "wanda")
"""They look at what layers read."""
PENALTIES = {"slim": 1e-4, "soft_movement": 0.02}
"""Importances with a penalty beside the loss, and its default strength."""
WIDTH_KINDS = ("heads", "head_dim", "ffn", "hidden")
"""Granularities that name what a width is for: channels of that kind alone are pruned."""
CHANNEL_GRANULARITIES = ("output_channel", "input_channel", *WIDTH_KINDS)
GRANULARITY_NAMES = ("element", *CHANNEL_GRANULARITIES)
DROPS = "${nnicompress.drops:FOLDER/sensitivity.yaml}"
"""How a recipe takes them from an analysis."""
N_OF_M = re.compile(r"([1-9]\d*):([1-9]\d*)")


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


def _share(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{value:g} is outside (0, 1)")
    return value


def _not_negative(value: float) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{value:g} is not a number of at least 0")
    return value


def _above_zero(value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{value:g} is not a number above 0")
    return value


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _blocks(value: object) -> object:
    return value if value == "auto" else _one_or_more(value)


def _some(value: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
    if value == ():
        raise ValueError("names no sequence of blocks; auto finds them, null goes without")
    return value


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _shown(granularity: str | tuple[int, ...]) -> str:
    return granularity if isinstance(granularity, str) else str(list(granularity))


def _patterns(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
    return values


def _granularity(value: object) -> object:
    if isinstance(value, str):
        if (found := N_OF_M.fullmatch(value)) is not None:
            if int(found[1]) >= int(found[2]):
                raise ValueError(f"{value} removes nothing: it keeps {found[1]} of every {found[2]} weights")
            return value
        if value not in GRANULARITY_NAMES:
            hint = did_you_mean(value, GRANULARITY_NAMES)
            names = ", ".join(GRANULARITY_NAMES)
            raise ValueError(
                f"no granularity named {value!r}{hint}; known: {names}, a block like [4, 4], or N:M like '2:4'"
            )
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if not value or not all(type(length) is int and (length >= 1 or length == -1) for length in value):
            raise ValueError(
                f"{list(value)} is not a block: it takes lengths of at least 1, or -1 for a whole dimension"
            )
        return tuple(value)
    names = ", ".join(GRANULARITY_NAMES)
    # YAML 1.1 reads 2:4 without quotes as a number to the base 60.
    raise ValueError(f"{value!r} is no granularity; known: {names}, a block like [4, 4], or N:M in quotes like '2:4'")


Ratio = Annotated[float, AfterValidator(_ratio)]
Bound = Annotated[float, AfterValidator(_bound)]
Count = Annotated[int, AfterValidator(_positive)]
Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Patterns = Annotated[Names, AfterValidator(_patterns)]
Granularity = Annotated[str | tuple[int, ...], BeforeValidator(_granularity)]
"""`element`, `output_channel`, `input_channel`, one of WIDTH_KINDS, N:M (`2:4`), or a block: its length along each
dimension, e.g. `(4, 4)`."""
GroupId = int | str
Share = Annotated[float, AfterValidator(_share)]
Strength = Annotated[float, AfterValidator(_not_negative)]
Positive = Annotated[float, AfterValidator(_above_zero)]

_TAKEN_BY: Mapping[str, tuple[str, ...]] = {
    "aggregation": ("taylor",),
    "scope": ("taylor", "l1", "l2", "level", "lamp", "fpgm", "wanda", "movement", "soft_movement"),
    "seed": ("random",),
    "regular_scale": tuple(PENALTIES),
    "score_rate": ("soft_movement",),
}
"""Key -> the importances that it means something to."""


def _verb(names: Sequence[str]) -> str:
    return "does" if len(names) == 1 else "do"


class ImportanceSettings(Settings):
    """How much the network would miss a weight or a channel group."""

    name: str = "taylor"
    training_steps: Count = 20
    """Batches over which gradients or inputs are gathered, where they are needed; no weight changes meanwhile.

    For `slim`, `movement` and `soft_movement`: optimizer steps of training before the first removal."""
    aggregation: Literal["sum_of_squares", "square_of_sum"] = "sum_of_squares"
    """For `taylor`: the sum over a channel group of (gradient * weight) squared, or the square of the sum.

    Both are averaged over the batches (Molchanov et al. 2019).
    """
    scope: Literal["producers", "consumers", "group"] | None = None
    """Which weights of a channel group count: those that produce it, those that read it, or all. null: `producers` for
    l1 and l2 (Li et al. 2017), `consumers` for `square_of_sum`, else `group`."""
    seed: int | None = None
    """For `random`; null: PyTorch's global generator, which a run's seed sets."""
    regular_scale: Strength | None = None
    """For `slim`, the weight of the scales' L1 norm beside the loss; for `soft_movement`, of the sum of the scores'
    sigmoids. null: 1e-4 (Liu et al. 2017) and 0.02."""
    score_rate: Positive = 1.0
    """For `soft_movement`: what a score learns a step of -gradient * weight and of the penalty."""
    blocks: Annotated[Literal["auto"] | tuple[str, ...] | None, BeforeValidator(_blocks), AfterValidator(_some)] = None
    """For importances that look at inputs: the sequences of blocks (`model.layers`) that are pruned one block after the
    other, each on what the pruned ones before it give. `auto`: those that can be found; null: all at once, on what the
    unpruned model computes."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in IMPORTANCE_NAMES:
            hint = did_you_mean(self.name, IMPORTANCE_NAMES)
            raise ValueError(f"no importance named {self.name!r}{hint}; known: {', '.join(IMPORTANCE_NAMES)}")
        for key, takers in _TAKEN_BY.items():
            if self.name not in takers and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{self.name} takes no {key}; {', '.join(takers)} {_verb(takers)}")
        # `auto` is whatever fits, so that a preset's importance can be exchanged for a control's.
        if self.blocks not in (None, "auto") and not self.looks_at_inputs:
            raise ValueError(
                f"{self.name} takes no blocks, as it looks at no inputs; {', '.join(INPUT_IMPORTANCES)} do"
            )
        return self

    @property
    def looks_at_inputs(self) -> bool:
        """Whether it is made of what layers read."""
        return self.name in INPUT_IMPORTANCES

    @property
    def penalty(self) -> float:
        """The strength of the penalty beside the loss."""
        return PENALTIES.get(self.name, 0.0) if self.regular_scale is None else self.regular_scale


class AllocationSettings(Settings):
    """How many channel groups (or weights) each layer loses."""

    name: Literal["uniform", "global", "isomorphic", "sensitivity"] = "uniform"
    """`uniform`: each loses its own `sparse_ratio`; `global`: all of a target compete on importance; `isomorphic`: only
    those that are built alike compete (Fang et al. 2024); `sensitivity`: each loses what costs the same drop of the
    metric."""
    within: Literal["tensor", "output"] = "tensor"
    """For single weights: whether those of a tensor are ranked together, or those of each output alone."""
    round_to: Annotated[int, AfterValidator(_positive)] | Literal["auto"] = "auto"
    """Kept widths are multiples of this many channels. `auto`: the greatest power of two up to an eighth of the width,
    at most 16."""
    normalize: Literal["mean", "max", "none"] | None = None
    """What the scores of one width are divided by before widths compete. null: `mean` for channels, `none` for single
    weights and blocks."""
    drops: dict[str, dict[float, float]] | None = None
    """For `sensitivity`: layer -> ratio -> drop, as `nnicompress sensitivity` measures them."""

    @property
    def competes(self) -> bool:
        """Whether importance decides between layers."""
        return self.name in ("global", "isomorphic")

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.name == "sensitivity" and not self.drops:
            raise ValueError(f"sensitivity needs drops, as in {{name: sensitivity, drops: {DROPS}}}")
        if self.name != "sensitivity" and self.drops is not None:
            raise ValueError(f"{self.name} takes no drops; name: sensitivity does")
        for layer, measured in (self.drops or {}).items():
            for ratio in measured:
                if not 0 < ratio < 1:
                    raise ValueError(f"drops.{layer}.{ratio:g}: a ratio is in (0, 1)")
        return self


class ScheduleSettings(Settings):
    """How the sparsity grows; every ratio is relative to the unpruned model."""

    name: Literal["one_shot", "linear", "agp", "lottery_ticket"] = "one_shot"
    """`agp` grows as 1 - (1 - t)^3 (Zhu and Gupta 2017). `lottery_ticket` trains before each removal, removes the same
    share of what is left, and puts the rest back to the weights that the stage began with (Frankle and Carbin 2019)."""
    total_times: Count | None = None
    """How many times something is removed."""
    interval_steps: Count | None = None
    """Optimizer steps of training between two removals (for `lottery_ticket` before the first, too); each interval is a
    training with a fresh optimizer."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = {"total_times": self.total_times, "interval_steps": self.interval_steps}
        if self.name == "one_shot" and (extra := [key for key, value in given.items() if value is not None]):
            raise ValueError(f"one_shot takes no {' and no '.join(extra)}; linear, agp and lottery_ticket do")
        if self.name != "one_shot" and (missing := [key for key, value in given.items() if value is None]):
            raise ValueError(f"{self.name} needs {' and '.join(missing)}")
        return self


class TensorSettings(Settings):
    """What is asked of one tensor; in `target_settings` each key given replaces the target's own."""

    sparse_ratio: Ratio | None = None
    """The share to remove, relative to the unpruned model."""
    sparse_threshold: float | None = None
    """In place of a ratio: each width (or tensor) loses what scores below this, as the importance gives it."""
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
        if ask is not None and self.sparse_threshold is not None:
            raise ValueError("sparse_ratio and sparse_threshold both say what to remove; set one of them to null")
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
                self.of_tensor(name)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"target_settings.{name}: {reason}") from error
        return self

    def of_tensor(self, name: str) -> TensorSettings:
        """What is asked of parameter `name`, its `target_settings` merged in."""
        own = {key: getattr(self, key) for key in TensorSettings.model_fields}
        special = self.target_settings.get(name)
        if special is not None:
            own |= {key: getattr(special, key) for key in special.model_fields_set}
        return TensorSettings(**own)


class BudgetSettings(Settings):
    """What may remain of the network once shrunk, relative to the unpruned one: exactly one of the three."""

    macs: Share | None = None
    """Multiply-accumulates."""
    params: Share | None = None
    """Parameters."""
    latency: Share | None = None
    """The sum of the layers' latencies on this machine, from a table that is measured as it is needed."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(given) or "none"
            raise ValueError(f"exactly one of macs, params and latency is given, not {named}")
        return self

    @property
    def kind(self) -> Literal["macs", "params", "latency"]:
        """Which one."""
        return "macs" if self.macs is not None else "params" if self.params is not None else "latency"

    @property
    def remaining(self) -> float:
        """Its share."""
        value = self.macs or self.params or self.latency
        assert value is not None
        return value


class PrunerSettings(Settings):
    """A pruner: importance x granularity x allocation x schedule, over targets."""

    kind: Literal["pruner"] = "pruner"
    importance: Annotated[ImportanceSettings, BeforeValidator(_named)] = Field(default_factory=ImportanceSettings)
    granularity: Granularity = "output_channel"
    allocation: Annotated[AllocationSettings, BeforeValidator(_named)] = Field(default_factory=AllocationSettings)
    schedule: Annotated[ScheduleSettings, BeforeValidator(_named)] = Field(default_factory=ScheduleSettings)
    target: BudgetSettings | None = None
    """What may remain: the ratios are searched for, in the proportion of the targets' `sparse_ratio`s."""
    targets: dict[str, TargetSettings]
    outputs: Names = ()
    """Entries of the model's result that must keep their sizes, e.g. `logits`; none: all. An encoder's hidden states,
    which a model returns besides its logits, otherwise keep the hidden width whole."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.targets:
            raise ValueError("targets is empty: a pruner needs at least one")
        if self.importance.blocks is not None and self.importance.looks_at_inputs:
            deciding = "target" if self.target is not None else f"allocation {self.allocation.name}"
            if deciding != "allocation uniform":
                raise ValueError(
                    f"importance.blocks prunes one block after the other, and {deciding} decides on all at once; set "
                    "blocks to null, or use allocation: {name: uniform}"
                )
        if {"heads", "head_dim"} <= self.granularities:
            raise ValueError("heads and head_dim can't be pruned at once; prune one, shrink, then prune the other")
        for name, target in self.targets.items():
            for tensor in target.target_names:
                asked = target.of_tensor(tensor)
                channels = self.granularity_of(asked) in CHANNEL_GRANULARITIES
                if self.importance.name in CHANNEL_IMPORTANCES and not channels:
                    raise ValueError(
                        f"{self.importance.name} scores whole channels, and targets.{name} has granularity "
                        f"{_shown(self.granularity_of(asked))}; use output_channel or input_channel"
                    )
                if asked.global_group_id is not None and not self.allocation.competes:
                    raise ValueError(f"targets.{name} has a global_group_id, which needs allocation: {{name: global}}")
                if self.allocation.name == "sensitivity" and not channels:
                    raise ValueError(f"allocation sensitivity takes channel granularities; targets.{name} has another")
                self._check_amount(name, asked)
                if asked.dependency_group_id is not None and not channels:
                    raise ValueError(f"targets.{name} has a dependency_group_id, which only channel granularities take")
        return self

    def _check_amount(self, name: str, asked: TensorSettings) -> None:
        """Raise a ValueError unless target `name` says, in one way, how much is to go."""
        granularity = self.granularity_of(asked)
        n_of_m = N_OF_M.fullmatch(granularity) if isinstance(granularity, str) else None
        if n_of_m is not None:
            ratio = 1 - int(n_of_m[1]) / int(n_of_m[2])
            if asked.sparse_threshold is not None or asked.sparse_ratio not in (None, ratio):
                raise ValueError(
                    f"targets.{name} is {granularity}, a sparse_ratio of {ratio:g}: leave sparse_ratio out"
                )
            if self.schedule.name != "one_shot" or self.allocation.name != "uniform":
                raise ValueError(
                    f"targets.{name} is {granularity}, the same in every place and at once: schedule is one_shot, "
                    "allocation uniform"
                )
        elif (asked.sparse_ratio, asked.sparse_threshold, self.target) == (None, None, None):
            raise ValueError(f"targets.{name}: sparse_ratio is missing")
        if asked.sparse_threshold is not None and (self.allocation.name != "uniform" or self.target is not None):
            other = "target" if self.target is not None else f"allocation {self.allocation.name}"
            raise ValueError(f"targets.{name} has a sparse_threshold, which leaves nothing for {other} to decide")
        if self.target is not None and granularity not in CHANNEL_GRANULARITIES:
            raise ValueError(
                f"target is a size of the shrunk model, and targets.{name} only masks; use granularity: output_channel"
            )
        if self.allocation.within == "output" and (granularity != "element" or self.allocation.name != "uniform"):
            raise ValueError("allocation.within: output needs granularity: element and allocation: {name: uniform}")

    def asked(self, tensor: TensorSettings) -> TensorSettings:
        """One tensor's settings, with the ratio that N:M means."""
        granularity = self.granularity_of(tensor)
        n_of_m = N_OF_M.fullmatch(granularity) if isinstance(granularity, str) else None
        if n_of_m is None:
            return tensor
        return tensor.model_copy(update={"sparse_ratio": 1 - int(n_of_m[1]) / int(n_of_m[2])})

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
        return with_targets(cls, targets, settings, _GROUPS)


_GROUPS: tuple[type[Settings], ...] = (
    PrunerSettings,
    TargetSettings,
    ImportanceSettings,
    AllocationSettings,
    ScheduleSettings,
    BudgetSettings,
)
