"""Builds the user's optimizers for a changed model: parameter groups are kept as names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from nnicompress.errors import UserError, did_you_mean
from nnicompress.trace import Traced, call, parameter_names, unknown_argument

_WAY_OUT = "optimizers=nnicompress.trace(SGD)(model.parameters(), lr=0.1)"


@dataclass(frozen=True, eq=False)
class OptimizerSpec:
    """An optimizer as a recipe describes it: how to build it, without parameters, and which get settings of their own.

    `param_groups` is a sequence of `{params_re: REGEX, **settings}`; a parameter belongs to the group whose regular
    expression is found in its name (`re.search`). The others form the first group, with the settings of `traced`.
    """

    traced: Traced
    param_groups: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Group:
    """One parameter group: names of parameters, and the settings given to it."""

    names: tuple[str, ...]
    settings: Mapping[str, Any]


class OptimizerRecord:
    """How one optimizer is built, for any model with the parameter names of the first one it was bound to."""

    def __init__(self, given: Traced | OptimizerSpec, index: int) -> None:
        self.given, self.index = given, index
        traced = given.traced if isinstance(given, OptimizerSpec) else given
        check_optimizer_class(traced)
        self.cls, self.label = traced.cls, f"{traced.name} (optimizer {index})"
        self.kwargs = dict(traced.kwargs)
        self.args = traced.args
        self._parameters: Any = None
        self._patterns: Sequence[Mapping[str, Any]] = ()
        self._groups: tuple[Group, ...] | None = None
        if isinstance(given, OptimizerSpec):
            self._patterns = given.param_groups
        elif "params" in self.kwargs:
            self._parameters = self.kwargs.pop("params")
        elif self.args:
            self._parameters, self.args = self.args[0], self.args[1:]

    def resolve(self, model: nn.Module) -> tuple[Group, ...]:
        """The groups by name; `model` is asked the first time, and the answer holds for every later model."""
        if self._groups is None:
            groups = self._by_pattern(model) if self._parameters is None else self._by_identity(model)
            self._groups = tuple(groups)
            # The recorded parameters would keep the first model alive.
            self._parameters, self.given = None, OptimizerSpec(Traced(self.cls, (), self.kwargs))
        return self._groups

    def build(self, model: nn.Module, without: frozenset[int]) -> Optimizer:
        """The optimizer for `model`, without the parameters of these ids; names that `model` lacks are left out."""
        parameters = {name: p for name, p in model.named_parameters() if id(p) not in without}
        groups = [
            {"params": [parameters[name] for name in group.names if name in parameters], **group.settings}
            for group in self.resolve(model)
        ]
        if not any(group["params"] for group in groups):
            raise UserError(f"{self.label}: the bound model has none of its parameters")
        plain = len(groups) == 1 and set(groups[0]) == {"params"}
        optimizer = call(self.cls, groups[0]["params"] if plain else groups, *self.args, **self.kwargs)
        assert isinstance(optimizer, Optimizer)
        return optimizer

    def _by_pattern(self, model: nn.Module) -> Iterator[Group]:
        names = [name for name, _ in model.named_parameters()]
        owner: dict[str, str] = {}
        found: list[Group] = []
        for number, settings in enumerate(self._patterns):
            where = f"{self.label}, param_groups[{number}]"
            if not isinstance(pattern := settings.get("params_re"), str):
                raise UserError(f"{where}: params_re is required, a regular expression for names of parameters")
            try:
                matched = [name for name in names if re.search(pattern, name)]
            except re.error as error:
                raise UserError(f"{where}: params_re {pattern!r} is no regular expression: {error}") from error
            if not matched:
                near = did_you_mean(pattern, names) or f"; the model has {_few(names)}"
                raise UserError(f"{where}: params_re {pattern!r} matches no parameter{near}")
            for name in matched:
                if name in owner:
                    raise UserError(
                        f"{where}: parameter {name!r} matches params_re {owner[name]!r} and {pattern!r}; "
                        "each parameter belongs to one group"
                    )
                owner[name] = pattern
            others = {key: value for key, value in settings.items() if key != "params_re"}
            for key in others:
                if unknown := unknown_argument(self.cls, key):
                    raise UserError(f"{where}: {unknown}")
            found.append(Group(tuple(matched), others))
        if rest := tuple(name for name in names if name not in owner):
            yield Group(rest, {})
        yield from found

    def _by_identity(self, model: nn.Module) -> Iterator[Group]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        known = set(names.values())
        given = self._parameters
        items = given if isinstance(given, (list, tuple)) else [given]
        in_groups = [item for item in items if isinstance(item, Mapping)]
        if in_groups and len(in_groups) != len(items):
            raise UserError(f"{self.label}: parameters and parameter groups are mixed in one list")
        for number, group in enumerate(in_groups or [{"params": items}]):
            where = f"{self.label}, group {number}" if in_groups else self.label
            if "params" not in group:
                raise UserError(f"{where}: a parameter group is a dict with the key 'params'")
            members = group["params"]
            members = members if isinstance(members, (list, tuple)) else [members]
            yield Group(
                tuple(_name_of(member, names, known, where) for member in members),
                {key: value for key, value in group.items() if key != "params"},
            )


def check_optimizer_class(traced: object) -> None:
    """Refuse what is not a description of an optimizer, and optimizers whose inner steps can't be seen.

    Raises:
        UserError: a built optimizer, a class without `trace`, L-BFGS or a SAM-like optimizer.
    """
    if isinstance(traced, Optimizer):
        raise UserError(
            f"optimizers: {type(traced).__name__} is already built, tied to the parameters of one model; record how it "
            f"is built: {_WAY_OUT}"
        )
    if not isinstance(traced, Traced):
        raise UserError(f"optimizers: {traced!r} doesn't say how to build an optimizer; write {_WAY_OUT}")
    cls = traced.cls
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        raise UserError(f"optimizers: {traced.name} is no torch.optim.Optimizer class; write {_WAY_OUT}")
    closure_required = "closure" in parameter_names(cls.step) and _required(cls.step, "closure")
    if issubclass(cls, torch.optim.LBFGS) or closure_required:
        raise UserError(
            f"optimizers: {traced.name} calls a closure several times a step, between which masks can't be enforced; "
            "use an optimizer with one step a gradient, such as SGD or AdamW"
        )
    if hasattr(cls, "first_step") and hasattr(cls, "second_step"):
        raise UserError(
            f"optimizers: {traced.name} moves the weights twice a step (first_step, second_step), between which masks "
            "can't be enforced; use its base optimizer"
        )


def check_every_parameter_once(
    model: nn.Module, records: Sequence[OptimizerRecord], without: frozenset[int] = frozenset()
) -> None:
    """Every trainable parameter of `model` is in exactly one group of one optimizer.

    Raises:
        UserError: names the parameters at fault.
    """
    home: dict[str, str] = {}
    for record in records:
        groups = record.resolve(model)
        for number, group in enumerate(groups):
            here = record.label if len(groups) == 1 else f"group {number} of {record.label}"
            for name in group.names:
                if name in home:
                    raise UserError(f"parameter {name!r} is in {home[name]} and in {here}; each belongs to one group")
                home[name] = here
    left = [n for n, p in model.named_parameters() if p.requires_grad and n not in home and id(p) not in without]
    if left:
        raise UserError(
            f"{len(left)} trainable parameter{'s are' if len(left) > 1 else ' is'} in no optimizer: {_few(left)}; "
            "give them to one, or freeze them with requires_grad_(False)"
        )


def refuse_sharded(model: nn.Module) -> None:
    """Raise a UserError where a parameter is a shard: masks and importance need whole tensors."""
    for name, parameter in model.named_parameters():
        if sharded := {"DTensor", "FlatParameter"} & {cls.__name__ for cls in type(parameter).__mro__}:
            raise UserError(f"parameter {name!r} is sharded ({sharded.pop()}): compress the model before it is sharded")


def add_group(optimizer: Optimizer, parameters: Sequence[nn.Parameter], settings: Mapping[str, Any]) -> None:
    """Give a compressor's own parameters to `optimizer`, in a group without weight decay unless `settings` say one."""
    for key in settings:
        if key not in optimizer.defaults:
            near = did_you_mean(key, optimizer.defaults)
            raise UserError(f"{type(optimizer).__name__} has no setting {key!r} for a compressor's parameters{near}")
    no_decay = {"weight_decay": 0.0} if "weight_decay" in optimizer.defaults else {}
    optimizer.add_param_group({"params": list(parameters), **no_decay, **settings})


def _name_of(member: Any, names: Mapping[int, str], known: set[str], where: str) -> str:
    if isinstance(member, (list, tuple)) and len(member) == 2 and isinstance(member[0], str):
        name: str = member[0]
        if name not in known:
            raise UserError(f"{where}: the bound model has no parameter {name!r}{did_you_mean(name, known)}")
        return name
    if not isinstance(member, torch.Tensor):
        raise UserError(f"{where}: {member!r} is no parameter; write {_WAY_OUT}")
    if id(member) not in names:
        raise UserError(
            f"{where}: a parameter of shape {tuple(member.shape)} is not in the model that is bound first; give the "
            "optimizer that model's parameters, or its named_parameters(), which serve copies of the model, too"
        )
    return names[id(member)]


def _required(function: Any, argument: str) -> bool:
    return inspect.signature(function).parameters[argument].default is inspect.Parameter.empty


def _few(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
