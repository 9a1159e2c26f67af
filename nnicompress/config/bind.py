"""Binds the arguments of a `_target_` to its signature without calling it, and records how to build the object."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union

from torch import Tensor

from nnicompress import trust
from nnicompress.config.resolve import MISSING, SourceOf, unknown_source
from nnicompress.errors import ConfigError, InputErrors, TrustError, did_you_mean
from nnicompress.trace import Traced, parameter_names


def bind(
    node: Mapping[str, Any],
    *,
    key: str,
    source_of: SourceOf = unknown_source,
    positional: Sequence[str] = (),
    filled: Collection[str] = (),
    own: Collection[str] = (),
) -> Traced:
    """How to build the object of a `{_target_: ..., argument: value}` node; nested nodes become `Traced` themselves.

    `positional` names what the caller of `Traced.build` passes in front (an optimizer's parameters), `filled` the
    arguments that somebody else fills in where they are not given (`total_steps`), both also for nested nodes of the
    same kind (the schedulers of a `SequentialLR`); `own` are the keys of the node that are not arguments.

    Raises:
        InputErrors: everything that is wrong, nested nodes included: a target that doesn't exist or may not be
            called, an unknown or a missing argument, an argument of the wrong type.
    """
    binding = _Binding(source_of, tuple(positional), frozenset(filled), [])
    arguments = {name: value for name, value in node.items() if name not in own}
    traced = binding.trace(arguments, key, outermost=True)
    if binding.errors:
        raise InputErrors(binding.errors)
    assert traced is not None
    return traced


def function(name: str, *, key: str, source_of: SourceOf = unknown_source) -> Callable[..., Any]:
    """The function that a dotted name leads to, for settings that take a function itself (`training_func`)."""
    return trust.resolve(name, key=key, source=source_of(key))


@dataclass(frozen=True)
class _Binding:
    """One walk over a node and the nodes inside it."""

    source_of: SourceOf
    positional: tuple[str, ...]
    filled: frozenset[str]
    errors: list[ConfigError]

    def fail(self, text: str, key: str, *, at: str | None = None) -> None:
        """Record an error of `key`, written at key `at`."""
        self.errors.append(ConfigError(text, key=key, source=self.source_of(at or key)))

    def trace(self, node: Mapping[str, Any], key: str, *, outermost: bool = False) -> Traced | None:
        """The node as a record, or None where its target is at fault; wrong arguments are recorded beside."""
        target, args, kwargs = node["_target_"], node.get("_args_", []), dict[str, Any]()
        for name, value in node.items():
            if name in ("_target_", "_args_"):
                continue
            if name.startswith("_") and name.endswith("_"):
                self.fail(
                    f"{name} is not supported; a node has _target_, _args_ and arguments", key, at=f"{key}.{name}"
                )
            else:
                kwargs[name] = self.value(value, f"{key}.{name}")
        positionals = [self.value(value, f"{key}._args_.{index}") for index, value in enumerate(args)]
        where = f"{key}._target_"
        try:
            found = trust.resolve(target, key=where, source=self.source_of(where))
        except ConfigError as error:
            self.errors.append(error)
            return None
        same_kind = outermost or (bool(self.positional) and parameter_names(found)[:1] == self.positional)
        given = self.positional if same_kind else ()
        self.check(_Call(found, target, given, len(positionals), kwargs), key, self.filled if same_kind else ())
        return Traced(found, tuple(positionals), kwargs)

    def value(self, value: Any, key: str) -> Any:
        """`value` with every node inside it traced."""
        if isinstance(value, Mapping):
            if "_target_" in value:
                if isinstance(value["_target_"], str):
                    return self.trace(value, key)
                self.fail(f"{value['_target_']!r} is not a dotted name", f"{key}._target_")
                return None
            return {name: self.value(child, f"{key}.{name}") for name, child in value.items()}
        if isinstance(value, list):
            return [self.value(child, f"{key}.{index}") for index, child in enumerate(value)]
        return value

    def check(self, call: _Call, key: str, filled: Collection[str]) -> None:
        """Record what the call would refuse, as far as the signature tells."""
        if call.kwargs.get("trust_remote_code"):
            name = f"{key}.trust_remote_code"
            self.errors.append(TrustError("code from elsewhere may not be run", key=name, source=self.source_of(name)))
        try:
            parameters = list(inspect.signature(call.function).parameters.values())
        except ValueError:  # a builtin that doesn't tell, such as torch.tensor
            return
        by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        room = len(by_position) - len(call.given)
        if call.num_args > room and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            self.fail(f"{call.target} takes {room} arguments by position, not {call.num_args}", f"{key}._args_")
        taken = {p.name for p in by_position[: len(call.given) + call.num_args]}
        self.check_named(call, parameters, taken, key)
        for parameter in parameters:
            name, optional = parameter.name, parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            required = parameter.default is parameter.empty and not optional
            if required and name not in taken and name not in call.kwargs and name not in filled:
                self.fail(f"{call.target} needs a value; pass {key}.{name}=VALUE", f"{key}.{name}")

    def check_named(self, call: _Call, parameters: list[inspect.Parameter], taken: set[str], key: str) -> None:
        """Each named argument is one that the target takes, is given once, and is of the right type."""
        named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        hints = _hints(call.function)
        for name, value in call.kwargs.items():
            if name in taken:
                self.fail(f"{call.target} is given {name!r} already; leave it out", f"{key}.{name}")
            elif name in named:
                reason = _wrong_type(value, hints.get(name, named[name].annotation))
                if reason and not (value is None and named[name].default is None):
                    self.fail(reason, f"{key}.{name}")
            elif not takes_any:
                free = [known for known in named if known not in taken]
                near = did_you_mean(name, free, most=1) or (
                    f"; it takes {', '.join(free)}" if free else "; it takes none"
                )
                self.fail(f"{call.target} takes no {name!r}{near}", key, at=f"{key}.{name}")


@dataclass(frozen=True)
class _Call:
    """`function(*given, *args, **kwargs)`, where `given` are names of what comes later."""

    function: Callable[..., Any]
    target: str
    given: tuple[str, ...]
    num_args: int
    kwargs: Mapping[str, Any]


def _hints(found: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the arguments, or none where they can't be evaluated."""
    called = found.__init__ if inspect.isclass(found) else found
    try:
        return typing.get_type_hints(called)
    except (NameError, TypeError, AttributeError):  # names that only exist for type checkers
        return {}


_SCALARS: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    NoneType: (NoneType,),
    Tensor: (),
}
_NOUNS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
    Tensor: "a tensor",
}


def _wrong_type(value: Any, hint: Any) -> str | None:
    """Why `value` doesn't fit `hint`; None where it fits, or where the hint says more than plain scalars."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, Traced) or value == MISSING or not all(isinstance(m, type) and m in _SCALARS for m in members):
        return None
    accepted = {kind for member in members for kind in _SCALARS[member]}
    if type(value) in accepted:  # not isinstance: `width: true` is a mistake, though bool is an int to Python
        return None
    return f"{'null' if value is None else repr(value)} is not {' or '.join(_NOUNS[member] for member in members)}"
