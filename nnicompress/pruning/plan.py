"""What a pruner's targets come to on one model: the widths and tensors to prune, and what can't be, with reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from nnicompress.errors import ConfigError
from nnicompress.graph.widths import UNITS, ChannelGroups, Slot, Width
from nnicompress.pruning.granularity import block_shape, kept_of, output_pool, pool_shape
from nnicompress.pruning.settings import CHANNEL_GRANULARITIES, WIDTH_KINDS, PrunerSettings, TensorSettings
from nnicompress.pruning.targets import Selection, parameter_names, select


@dataclass(frozen=True, eq=False)
class WidthTarget:
    """A width to prune; `modules` are the selected ones that share it, and one group is `cost` of their channels.

    Where the granularity names its kind, it is counted in groups of that kind (`unit`), else in channels.
    """

    width: Width
    target: str
    settings: TensorSettings
    modules: tuple[str, ...]
    cost: int
    unit: str = "channels"

    @property
    def channels_per_group(self) -> int:
        """How many channels of its first producer one group is."""
        return int(first_producer(self.width).indices.shape[1])


@dataclass(frozen=True, eq=False)
class TensorTarget:
    """A parameter to prune element by element, or in blocks of this shape."""

    tensor: str
    target: str
    settings: TensorSettings
    block: tuple[int, ...]
    pool: tuple[int, ...] | None = None
    """Where weights are ranked only among their neighbours: the lengths of such a pool."""


@dataclass(frozen=True)
class Unpruned:
    """Channels of selected modules that were asked for and must stay."""

    module: str
    ratio: float
    channels: int
    of: int
    reason: str


@dataclass(frozen=True, eq=False)
class Plan:
    """All of it."""

    widths: tuple[WidthTarget, ...]
    tensors: tuple[TensorTarget, ...]
    unpruned: tuple[Unpruned, ...]

    @property
    def asks(self) -> bool:
        """Whether there is anything to prune."""
        return bool(self.widths or self.tensors)

    def __add__(self, other: Plan) -> Plan:
        """Both."""
        return Plan(self.widths + other.widths, self.tensors + other.tensors, self.unpruned + other.unpruned)

    def to_score(self) -> tuple[tuple[Width, ...], dict[str, tuple[int, ...]]]:
        """The widths, and the block of each parameter by its name."""
        widths = tuple(target.width for target in self.widths)
        return widths, {target.tensor: target.block for target in self.tensors}


def first_producer(width: Width) -> Slot:
    """The slot that counts a width's channels: its first producer, or its first slot where nothing produces it."""
    return (*width.producers, *width.slots)[0]


def make_plan(model: nn.Module, settings: PrunerSettings, groups: ChannelGroups | None) -> Plan:
    """Match the targets with the model's widths and parameters; `groups` may be None where no channels are pruned.

    A width is pruned where a target selects a module that owns one of its producing tensors (for `input_channel`: a
    consuming one) and excludes none of those that do.

    Raises:
        ConfigError: see `select`; targets that meet in one width or tensor with other ratios; blocks that don't fit; a
            kind of width (`heads`, `ffn` ...) that none of the selected modules produces.
    """
    widths: dict[str, WidthTarget] = {}
    tensors: dict[str, TensorTarget] = {}
    unpruned: list[Unpruned] = []
    parameters = dict(model.named_parameters())
    for name, target in settings.targets.items():
        selection = select(model, target, key=f"targets.{name}")
        for tensor in selection.target_names:
            asked = settings.asked(target.of_tensor(tensor))
            granularity = settings.granularity_of(asked)
            owners = parameter_names(model, selection, tensor)
            if granularity in CHANNEL_GRANULARITIES:
                assert groups is not None, "channel granularities need channel groups"
                found, left = _width_targets(model, name, asked, str(granularity), owners, selection, groups)
                unpruned += left
                for width_target in found:
                    known = widths.get(width_target.width.name)
                    widths[width_target.width.name] = width_target if known is None else _merged(known, width_target)
                continue
            for owner, parameter in owners.items():
                module = model.get_submodule(owner)
                shape, key = parameters[parameter].shape, f"targets.{name}.granularity"
                block = block_shape(granularity, shape, tensor=parameter, key=key)
                pool = None
                if kept_of(granularity) is not None:
                    pool = pool_shape(
                        str(granularity), shape, inputs=_channel_dim(module, "input_channel"), tensor=parameter, key=key
                    )
                elif settings.allocation.within == "output":
                    outputs = _channel_dim(module, "output_channel")
                    pool = output_pool(shape, outputs=outputs, groups=getattr(module, "groups", 1))
                own = TensorTarget(parameter, name, asked, block, pool)
                before = tensors.setdefault(parameter, own)
                same = (before.settings.sparse_ratio, before.block, before.pool) == (asked.sparse_ratio, block, pool)
                if not same:
                    raise ConfigError(
                        f"{parameter} is also in targets.{before.target}, with another sparse_ratio or granularity",
                        key=f"targets.{name}",
                    )
    return Plan(tuple(widths.values()), tuple(tensors.values()), tuple(unpruned))


def _width_targets(
    model: nn.Module,
    target: str,
    asked: TensorSettings,
    granularity: str,
    owners: dict[str, str],
    selection: Selection,
    groups: ChannelGroups,
) -> tuple[list[WidthTarget], list[Unpruned]]:
    roles = ("input",) if granularity == "input_channel" else ("output", "inner")
    module_of = {tensor: module for module, tensor in reversed(owners.items())}
    excluded = _parameters_under(model, selection.excluded)
    found: list[WidthTarget] = []
    left: list[Unpruned] = []
    ratio = asked.sparse_ratio or 0.0
    reached: set[str] = set()
    kinds: set[str] = set()
    for width in groups.widths:
        slots = {module_of[s.tensor]: s for s in reversed(width.slots) if s.tensor in module_of and s.role in roles}
        if not slots:
            continue
        reached |= {slot.tensor for slot in slots.values()}
        kinds.add(width.kind)
        if granularity in WIDTH_KINDS and width.kind != granularity:
            continue
        barred = next((s.tensor for s in width.slots if s.tensor in excluded and s.role in roles[:1]), None)
        if barred is not None:
            why = f"shares its channels with {barred.rpartition('.')[0]}, which is excluded"
            for module, slot in slots.items():
                size = _length(model, slot)
                left.append(Unpruned(module, ratio, slot.indices.size, size, why))
            continue
        modules = tuple(module for module in owners if module in slots)
        cost = sum(slots[module].indices.shape[1] for module in modules)
        found.append(WidthTarget(width, target, asked, modules, cost, UNITS.get(granularity, "channels")))
    if granularity in WIDTH_KINDS:
        if not found and not left:
            have = f"; they produce {', '.join(sorted(kinds))}" if kinds else ""
            raise ConfigError(
                f"the selected modules produce no {granularity}{have}", key=f"targets.{target}.granularity"
            )
        return found, left
    for module, tensor in owners.items():
        if module_of[tensor] != module:  # tied: counted under its first module
            continue
        # The graph knows which dimension of a layer's weight holds its outputs; a norm's has but one.
        dim = _channel_dim(model.get_submodule(module), granularity)
        here = [entry for entry in groups.unprunable if entry.tensor == tensor]
        of_role = [entry for entry in here if entry.role == roles[0]]
        locked = of_role or [entry for entry in here if entry.role == "inner" and entry.dim == dim]
        shape = model.get_parameter(tensor).shape
        left += [Unpruned(module, ratio, entry.count, shape[entry.dim], entry.reason) for entry in locked]
        if not locked and tensor not in reached:
            size = shape[dim]
            why = "it has one channel" if size == 1 else "the captured forward does not use it as a layer's weight"
            left.append(Unpruned(module, ratio, size, size, why))
    return found, left


def _length(model: nn.Module, slot: Slot) -> int:
    """The length of the dimension that a parameter's slot lies in."""
    return int(model.get_parameter(slot.tensor).shape[slot.dim])


def _merged(first: WidthTarget, second: WidthTarget) -> WidthTarget:
    """One width selected by two targets: their ratios must agree, both bounds hold, all modules count."""
    a, b = first.settings, second.settings
    if a.sparse_ratio != b.sparse_ratio:
        raise ConfigError(
            f"asks for {_shown(b.sparse_ratio)} of {', '.join(second.modules)}, and targets.{first.target} for "
            f"{_shown(a.sparse_ratio)} of {', '.join(first.modules)}; they share the channels of {first.width.name}, "
            "so the ratios must agree",
            key=f"targets.{second.target}.sparse_ratio",
        )
    for name in ("dependency_group_id", "global_group_id", "sparse_threshold"):
        if getattr(a, name) != getattr(b, name):
            raise ConfigError(
                f"is not that of targets.{first.target}, and both prune {first.width.name}",
                key=f"targets.{second.target}.{name}",
            )
    lows = [ratio for ratio in (a.min_sparse_ratio, b.min_sparse_ratio) if ratio is not None]
    highs = [ratio for ratio in (a.max_sparse_ratio, b.max_sparse_ratio) if ratio is not None]
    bounds = {"min_sparse_ratio": max(lows, default=None), "max_sparse_ratio": min(highs, default=None)}
    new = tuple(module for module in second.modules if module not in first.modules)
    share = second.cost * len(new) // len(second.modules)
    return replace(first, settings=a.model_copy(update=bounds), modules=first.modules + new, cost=first.cost + share)


def _shown(ratio: float | None) -> str:
    return "no ratio" if ratio is None else f"{ratio:g}"


def _parameters_under(model: nn.Module, modules: Iterable[str]) -> set[str]:
    """The first names of all parameters that the modules own themselves."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        first[id(parameter)]
        for module in modules
        for parameter in model.get_submodule(module).parameters(recurse=False)
    }


def _channel_dim(module: nn.Module, granularity: str) -> int:
    """The dimension of a module's weight that holds its output (or input) channels."""
    # Transformers' Conv1D is a linear layer whose weight lies [in, out].
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd) or type(module).__name__ == "Conv1D"
    return 0 if (granularity != "input_channel") != transposed else 1
