"""How to build an object: a class or function and its arguments, recorded instead of called.

A compressor changes a model, so optimizer and scheduler must be built again for the changed one. In a recipe the
`_target_` and its arguments say how; in Python `trace(SGD)(model.parameters(), lr=0.1)` records the same thing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nnicompress.errors import UserError, did_you_mean


@dataclass(frozen=True, eq=False)
class Traced:
    """A call that can be made later, any number of times.

    `cls` is a class or a function. Arguments that are themselves `Traced`, also inside plain lists, tuples and
    dicts, are built afresh by each `build`. Two records are equal only where they are one object: arguments may be
    tensors.
    """

    cls: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The target's bare name, for messages: `SGD`."""
        return getattr(self.cls, "__name__", type(self.cls).__name__)

    def build(self, *more_args: Any, **more_kwargs: Any) -> Any:
        """Call the target with `more_args` before the recorded arguments and `more_kwargs` over the recorded ones."""
        kwargs = {name: _build_nested(value) for name, value in self.kwargs.items()}
        return self.cls(*more_args, *(_build_nested(value) for value in self.args), **{**kwargs, **more_kwargs})

    def __repr__(self) -> str:
        arguments = [*map(_short, self.args), *(f"{name}={_short(value)}" for name, value in self.kwargs.items())]
        return f"trace({self.name})({', '.join(arguments)})"


def trace(cls: Callable[..., Any]) -> Callable[..., Traced]:
    """Record a call instead of making it: `trace(SGD)(model.parameters(), lr=0.1)`.

    Iterators among the arguments (`model.parameters()`) are read into lists, so that they can be used again.

    Raises:
        UserError: `cls` takes no argument of that name. Missing ones are no error yet: the evaluator fills some in.
    """
    if not callable(cls):
        raise UserError(f"trace() takes a class or a function, not {cls!r}: trace(SGD)(parameters, lr=0.1)")

    def record(*args: Any, **kwargs: Any) -> Traced:
        traced = Traced(cls, tuple(map(_listed, args)), {name: _listed(value) for name, value in kwargs.items()})
        for name in kwargs:
            if unknown := unknown_argument(cls, name):
                raise UserError(unknown)
        return traced

    return record


def parameter_names(cls: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments that `cls` takes; empty where a builtin doesn't tell."""
    try:
        return tuple(inspect.signature(cls).parameters)
    except ValueError:
        return ()


def unknown_argument(cls: Callable[..., Any], name: str) -> str | None:
    """Why `cls` doesn't take the keyword `name`, or None where it does or doesn't tell."""
    try:
        parameters = inspect.signature(cls).parameters.values()
    except ValueError:
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if name in known:
        return None
    called = getattr(cls, "__name__", repr(cls))
    return f"{called} takes no {name!r}{did_you_mean(name, known) or '; it takes ' + ', '.join(known)}"


def call(cls: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`cls(*args, **kwargs)`, where a wrong or missing argument is the user's error and not a traceback.

    Raises:
        UserError: the arguments don't fit the signature, or the target refuses a value (ValueError).
    """
    name = getattr(cls, "__name__", repr(cls))
    try:
        inspect.signature(cls).bind(*args, **kwargs)
    except TypeError as error:
        raise UserError(f"{name}: {error}") from error
    except ValueError:
        pass  # a builtin that doesn't tell its signature
    try:
        return cls(*args, **kwargs)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def _build_nested(value: Any) -> Any:
    if isinstance(value, Traced):
        return value.build()
    if type(value) in (list, tuple):
        return type(value)(_build_nested(item) for item in value)
    if type(value) is dict:
        return {name: _build_nested(item) for name, item in value.items()}
    return value


def _listed(value: Any) -> Any:
    """`value` with its iterators read into lists; parameter groups hold them one level down."""
    if isinstance(value, Iterator):
        return [_listed(item) for item in value]
    if type(value) in (list, tuple):
        return type(value)(_listed(item) for item in value)
    if type(value) is dict:
        return {name: _listed(item) for name, item in value.items()}
    return value


def _short(value: Any) -> str:
    text = (
        repr(value) if isinstance(value, (int, float, str, bool, Traced, type(None))) else f"<{type(value).__name__}>"
    )
    return text if len(text) <= 60 else f"{text[:57]}..."
