"""Sequences of blocks: which modules they are, and what of a pruner's plan lies in which block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from nnicompress.errors import ConfigError, did_you_mean
from nnicompress.pruning.importance import Scope
from nnicompress.pruning.plan import Plan, WidthTarget
from nnicompress.pruning.scores import counted_slots

KEY = "importance.blocks"
"""The pruner's setting that names them."""
AUTO = "auto"

Sequences = dict[str, tuple[nn.Module, ...]]
"""Name of a sequence -> its blocks, in the order in which they run."""


def find_sequences(model: nn.Module) -> Sequences:
    """The sequences of blocks that can be told by their looks; there may be none.

    Those are the outermost `ModuleList`s and `Sequential`s of several modules of one class, each of several layers.
    """
    found: Sequences = {}
    for name, module in model.named_modules():
        if any(not outer or name.startswith(f"{outer}.") for outer in found):
            continue
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            blocks = tuple(module)
            alike = len({type(block) for block in blocks}) == 1 and len(set(blocks)) == len(blocks) > 1
            if alike and all(any(True for _ in block.children()) for block in blocks):
                found[name] = blocks
    return found


def named_sequences(model: nn.Module, names: Iterable[str], *, key: str = KEY) -> Sequences:
    """The sequences of these names.

    Raises:
        ConfigError: a name that no module has, or that of one that is no sequence of different modules; two names of
            which one lies in the other.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: Sequences = {}
    for name in names:
        if name not in modules:
            lists = [other for other, module in modules.items() if isinstance(module, (nn.ModuleList, nn.Sequential))]
            hint = did_you_mean(name, lists) or did_you_mean(name, modules)
            raise ConfigError(f"no module named {name!r} in {type(model).__name__}{hint}", key=key)
        module = modules[name]
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            near = _nearest_sequence(name, modules)
            raise ConfigError(
                f"{name or 'the model'} is {type(module).__name__}, no sequence of blocks "
                f"(a ModuleList or a Sequential){near}",
                key=key,
            )
        blocks = tuple(module)
        if not blocks:
            raise ConfigError(f"{name} has no blocks: it is empty", key=key)
        if len(set(blocks)) < len(blocks):
            raise ConfigError(
                f"{name} holds the same module several times, so its blocks can't be pruned one after the other; "
                "null scores its layers at once",
                key=key,
            )
        outer = next((other for other in found if _within(name, other) or _within(other, name)), None)
        if outer is not None:
            raise ConfigError(f"{name} and {outer} lie in each other; name one of them", key=key)
        found[name] = blocks
    return found


@dataclass(frozen=True, eq=False)
class Division:
    """A plan, divided: by sequence one plan a block; what lies in no block, or in several."""

    of_blocks: Mapping[str, Sequence[Plan]]
    rest: Plan


def divide(model: nn.Module, plan: Plan, sequences: Sequences, scope: Scope) -> Division:
    """What of `plan` lies in which block.

    A tensor belongs to a block where all modules that hold it do. A width does where all tensors do whose elements
    count for its scores (`scope`), unless a `dependency_group_id` ties it to others.
    """
    homes = _homes(model, sequences)

    def home_of_width(target: WidthTarget) -> Home | None:
        if target.settings.dependency_group_id is not None:
            return None
        found = {homes[slot.tensor] for slot in counted_slots(target.width, scope) if slot.tensor in homes}
        return found.pop() if len(found) == 1 else None

    widths = [(home_of_width(target), target) for target in plan.widths]
    tensors = [(homes.get(target.tensor), target) for target in plan.tensors]

    def at(home: Home | None) -> Plan:
        return Plan(
            tuple(target for own, target in widths if own == home),
            tuple(target for own, target in tensors if own == home),
            plan.unpruned if home is None else (),
        )

    return Division(
        {name: [at((name, number)) for number in range(len(blocks))] for name, blocks in sequences.items()}, at(None)
    )


Home = tuple[str, int]
"""A sequence and the number of a block in it."""


def _homes(model: nn.Module, sequences: Sequences) -> dict[str, Home | None]:
    """Of each parameter, by its first name: the block that it lies in; None: several, or none."""
    block_of = {
        module: (name, number)
        for name, blocks in sequences.items()
        for number, block in enumerate(blocks)
        for module in block.modules()
    }
    first = {parameter: name for name, parameter in model.named_parameters()}
    holders: dict[str, set[Home | None]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(first[parameter], set()).add(block_of.get(module))
    return {name: next(iter(own)) if len(own) == 1 else None for name, own in holders.items()}


def _within(inner: str, outer: str) -> bool:
    return not outer or inner == outer or inner.startswith(f"{outer}.")


def _nearest_sequence(name: str, modules: Mapping[str, nn.Module]) -> str:
    """A hint at the sequences inside or around the module of this name."""
    lists = [other for other, module in modules.items() if isinstance(module, (nn.ModuleList, nn.Sequential)) and other]
    near = [other for other in lists if _within(other, name)] or [other for other in lists if _within(name, other)]
    return f"; did you mean {' or '.join(repr(other) for other in near[:3])}?" if near else ""
