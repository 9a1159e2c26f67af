"""Which modules and parameters a target selects; works on the model alone, without a graph."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from nnicompress.errors import ConfigError, did_you_mean
from nnicompress.models.outputs import class_name
from nnicompress.pruning.settings import TargetSettings


class Selectors(Protocol):
    """The keys by which any compressor's target selects modules."""

    @property
    def op_types(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def op_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def op_names_re(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def exclude_op_types(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def exclude_op_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def exclude_op_names_re(self) -> tuple[str, ...]: ...  # noqa: D102


@dataclass(frozen=True)
class Selection:
    """What a target selects: module names in the model's order, and the parameters of them that it acts on."""

    module_names: tuple[str, ...]
    target_names: tuple[str, ...]
    excluded: frozenset[str] = frozenset()
    """Modules that one of the `exclude_*` keys names."""


def select(model: nn.Module, target: TargetSettings, *, key: str = "targets") -> Selection:
    """The modules that `target` selects, and its parameters of them.

    `key` is the target's dotted key, e.g. `targets.convs`, for error messages.

    Raises:
        ConfigError: what `select_modules` raises, or a parameter that none of the selected modules has.
    """
    names, excluded = select_modules(model, target, key=key)
    modules = {name: model.get_submodule(name) for name in names}
    for tensor in target.target_names:
        if not any(tensor in module._parameters for module in modules.values()):
            known = {parameter for module in modules.values() for parameter in module._parameters}
            raise ConfigError(
                f"none of the {len(names)} selected modules has a parameter {tensor!r}"
                f"{did_you_mean(tensor, known) or ('; they have ' + ', '.join(sorted(known)) if known else '')}",
                key=f"{key}.target_names",
            )
    return Selection(names, target.target_names, excluded)


def select_modules(
    model: nn.Module, target: Selectors, *, key: str = "targets"
) -> tuple[tuple[str, ...], frozenset[str]]:
    """The modules that `target` selects, in the model's order, and those that it excludes.

    Selected are (op_names or op_names_re) and op_types, less the excluded ones.

    Raises:
        ConfigError: a selector that matches no module (with the nearest names), or a target that selects nothing.
    """
    first_names: dict[int, str] = {}
    modules: dict[str, nn.Module] = {}
    aliases: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        aliases[name] = first_names.setdefault(id(module), name)
        modules.setdefault(aliases[name], module)
    types = {name: _type_names(module) for name, module in modules.items()}

    def of_types(wanted: Iterable[str], where: str) -> set[str]:
        found: set[str] = set()
        for wanted_type in wanted:
            matches = {name for name, names in types.items() if wanted_type in names}
            if not matches:
                known = set().union(*types.values())
                raise ConfigError(
                    f"no module of type {wanted_type!r} in {class_name(model)}"
                    f"{did_you_mean(wanted_type, known) or '; it has ' + ', '.join(_own_types(modules.values()))}",
                    key=f"{key}.{where}",
                )
            found |= matches
        return found

    def of_names(wanted: Iterable[str], where: str) -> set[str]:
        for name in wanted:
            if name not in aliases:
                raise ConfigError(
                    f"no module named {name!r} in {class_name(model)}{did_you_mean(name, aliases)}",
                    key=f"{key}.{where}",
                )
        return {aliases[name] for name in wanted}

    def of_patterns(wanted: Iterable[str], where: str) -> set[str]:
        found: set[str] = set()
        for pattern in wanted:
            matches = {aliases[name] for name in aliases if re.match(pattern, name)}
            if not matches:
                raise ConfigError(
                    f"no module name of {class_name(model)} matches {pattern!r}{did_you_mean(pattern, aliases)}",
                    key=f"{key}.{where}",
                )
            found |= matches
        return found

    chosen = set(modules)
    if target.op_names or target.op_names_re:
        chosen = of_names(target.op_names, "op_names") | of_patterns(target.op_names_re, "op_names_re")
    if target.op_types:
        chosen &= of_types(target.op_types, "op_types")
    excluded = (
        of_types(target.exclude_op_types, "exclude_op_types")
        | of_names(target.exclude_op_names, "exclude_op_names")
        | of_patterns(target.exclude_op_names_re, "exclude_op_names_re")
    )
    # A container's name stands for all that is in it: `exclude_op_names: [layer4]`.
    inside = tuple(f"{name}." for name in excluded if name)
    excluded |= {name for name in modules if inside and name.startswith(inside)}
    chosen -= excluded
    if not chosen:
        raise ConfigError("selects no module: its selectors match some each, but none matches all of them", key=key)
    return tuple(name for name in modules if name in chosen), frozenset(excluded)


def parameter_names(model: nn.Module, selection: Selection, tensor: str) -> dict[str, str]:
    """Selected module name -> the first name of its parameter `tensor` (tied ones have several), where it has it."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, str] = {}
    for name in selection.module_names:
        parameter = model.get_submodule(name)._parameters.get(tensor)
        if parameter is not None:
            found[name] = first[id(parameter)]
    return found


def _type_names(module: nn.Module) -> set[str]:
    """The names of the module's class and its ancestors below nn.Module: a user's `WSConv(nn.Conv2d)` is a Conv2d."""
    return {cls.__name__ for cls in type(module).__mro__ if issubclass(cls, nn.Module) and cls is not nn.Module}


def _own_types(modules: Iterable[nn.Module]) -> list[str]:
    return sorted({type(module).__name__ for module in modules})
