"""Builds the user's learning-rate schedulers for rebuilt optimizers, and fills in how many steps there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nnicompress.errors import UserError
from nnicompress.evaluators.optimizers import OptimizerSpec
from nnicompress.trace import Traced, call, parameter_names

FILLED = ("total_steps", "num_training_steps", "T_max")
"""Arguments that are filled with the number of scheduler steps of a training where they are not given."""

StepCount = Callable[[], "int | None"]
"""How often the scheduler will be stepped, or None where nobody knows; only asked where it is needed."""


@dataclass(frozen=True, eq=False)
class SchedulerRecord:
    """How one scheduler is built, and the index of the optimizer whose rate it sets."""

    traced: Traced
    optimizer: int


def record_schedulers(given: Sequence[object], optimizers: Sequence[object]) -> tuple[SchedulerRecord, ...]:
    """Tie each scheduler to its optimizer: the one it was traced with, else the one at the same place.

    `trace(OneCycleLR)(optimizer, max_lr=0.1)` and `trace(OneCycleLR)(max_lr=0.1)` mean the same for one optimizer.

    Raises:
        UserError: a built scheduler, or no way to tell which optimizer is meant.
    """
    records = []
    for position, traced in enumerate(given):
        if isinstance(traced, LRScheduler):
            raise UserError(
                f"lr_schedulers: {type(traced).__name__} is already built, tied to one optimizer; record how it is "
                f"built: lr_schedulers=nnicompress.trace({type(traced).__name__})(...)"
            )
        if not isinstance(traced, Traced):
            raise UserError(
                f"lr_schedulers: {traced!r} doesn't say how to build a scheduler; use nnicompress.trace(...)"
            )
        named, stripped = _strip_optimizer(traced)
        if named is not None:
            index = next((i for i, optimizer in enumerate(optimizers) if optimizer is named), None)
            if index is None:
                raise UserError(
                    f"lr_schedulers: {traced.name} was traced with an optimizer that is not in `optimizers`"
                )
        elif len(optimizers) == 1:
            index = 0
        elif len(given) == len(optimizers):
            index = position
        else:
            raise UserError(
                f"lr_schedulers: {len(given)} for {len(optimizers)} optimizers; say whose rate {traced.name} sets: "
                f"nnicompress.trace({traced.name})(optimizer, ...)"
            )
        records.append(SchedulerRecord(stripped, index))
    return tuple(records)


def build_scheduler(traced: Traced, optimizer: Optimizer, count: StepCount) -> Any:
    """Build a scheduler; schedulers inside its arguments (`SequentialLR`) are built for the same optimizer.

    Raises:
        UserError: it needs the number of steps, and nobody knows it.
    """
    kwargs = {name: _built(value, optimizer) for name, value in traced.kwargs.items()}
    missing = _missing_count(traced)
    if missing is not None:
        steps = count()
        if steps is None:
            raise UserError(
                f"{traced.name} needs {missing}, and the length of your training_func's epochs is unknown; pass "
                f"{missing} to it, or set `steps_per_epoch` on the function (the number of its optimizer steps in one)"
            )
        kwargs[missing] = steps
    return call(traced.cls, optimizer, *(_built(value, optimizer) for value in traced.args), **kwargs)


def _built(value: Any, optimizer: Optimizer) -> Any:
    """A scheduler's argument; schedulers in it are built for the same optimizer, and nothing is filled in for them."""
    if isinstance(value, Traced):
        if parameter_names(value.cls)[:1] != ("optimizer",):
            return value.build()
        inner = _strip_optimizer(value)[1]
        kwargs = {name: _built(item, optimizer) for name, item in inner.kwargs.items()}
        return call(inner.cls, optimizer, *(_built(item, optimizer) for item in inner.args), **kwargs)
    if type(value) in (list, tuple):
        return type(value)(_built(item, optimizer) for item in value)
    return value


def _missing_count(traced: Traced) -> str | None:
    """The argument for the number of steps that `traced` takes and wasn't given."""
    names = parameter_names(traced.cls)
    given = {name for name, value in traced.kwargs.items() if value is not None} | set(names[1 : 1 + len(traced.args)])
    if {"epochs", "steps_per_epoch"} <= given:  # OneCycleLR's other way to say it
        return None
    return next((name for name in FILLED if name in names and name not in given), None)


def _strip_optimizer(traced: Traced) -> tuple[object | None, Traced]:
    """The optimizer that a scheduler was traced with, if any, and the record without it."""

    def describes(value: object) -> bool:
        is_class = isinstance(value, Traced) and isinstance(value.cls, type) and issubclass(value.cls, Optimizer)
        return is_class or isinstance(value, OptimizerSpec)

    if "optimizer" in traced.kwargs:
        rest = {name: value for name, value in traced.kwargs.items() if name != "optimizer"}
        return traced.kwargs["optimizer"], Traced(traced.cls, traced.args, rest)
    if traced.args and describes(traced.args[0]):
        return traced.args[0], Traced(traced.cls, traced.args[1:], traced.kwargs)
    return None, traced
