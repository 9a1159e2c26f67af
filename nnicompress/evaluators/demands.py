"""Compares what a training_func was asked for with what it did, and says so by name and by how much."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable
from typing import Any

from nnicompress.errors import UserError


def check_signature(function: Callable[..., Any], argument: str, expected: tuple[str, ...], *keywords: str) -> None:
    """Raise a UserError unless `function` can be called with the `expected` arguments by position, and `keywords`."""
    if not callable(function):
        raise UserError(f"{argument} is {type(function).__name__}; it must be a function ({', '.join(expected)})")
    try:
        inspect.signature(function).bind(*expected, **dict.fromkeys(keywords))
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise UserError(f"{argument} {name!r} must take ({', '.join(expected)}): {error}") from error
    except ValueError:
        return  # a builtin that doesn't tell its signature


def check_reads(function: Callable[..., Any], argument: str, asked: int) -> None:
    """Raise a UserError where a Python function has the parameter `argument` and never reads it.

    Epochs can't be counted in a loop whose data nobody sees; that it doesn't read the number is certain all the same.
    """
    code = _code_of(function)
    if code is None or argument not in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        return
    if {"locals", "vars", "eval", "exec"} & set(code.co_names):
        return
    for instruction in dis.get_instructions(code):
        names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        if argument in names and (instruction.opname.startswith("LOAD") or instruction.opname == "MAKE_CELL"):
            return
    name = getattr(function, "__name__", type(function).__name__)
    raise UserError(
        f"training_func {name!r} never reads its argument {argument}, and this training asks for {argument}={asked}: "
        "end the loop after so many epochs, or ask for max_steps"
    )


def step_budget(max_steps: int | None, max_epochs: int | None, steps_per_epoch: int | None) -> tuple[int, str] | None:
    """The most optimizer steps that a training may make, and how it was asked for; None where that is unknown."""
    asked = []
    if max_steps is not None:
        asked.append((max_steps, f"max_steps={max_steps} asked for {max_steps}"))
    if max_epochs is not None and steps_per_epoch is not None:
        steps = max_epochs * steps_per_epoch
        asked.append((steps, f"max_epochs={max_epochs} asked for {steps} ({steps_per_epoch} an epoch)"))
    return min(asked, default=None)


def check_steps(steps: int, stopped: bool, budget: tuple[int, str] | None) -> str | None:
    """Raise a UserError where the loop made no step or too many; return a warning where it made too few.

    Too few may be right: a loop may stop early when it learns nothing more, and GradScaler skips steps.
    """
    if steps == 0:
        raise UserError(
            "training_func made no optimizer step: call optimizer.step() of the optimizer that it was given, and look "
            "whether its loop is entered at all"
        )
    if budget is None or steps == budget[0]:
        return None
    most, asked = budget
    if steps > most:
        more = f"{steps - most} too many and still going when it was stopped" if stopped else f"{steps - most} too many"
        raise UserError(f"training_func ran {steps} optimizer steps; {asked}: {more}. End its loop there")
    return f"training_func ran {steps} optimizer steps; {asked}: {most - steps} too few"


def check_epochs_differ(done: dict[int, int], max_epochs: int, steps: int) -> None:
    """Raise a UserError where different numbers of epochs took the same number of steps.

    `done` maps the epochs asked of earlier trainings to their steps, and takes up this one.
    """
    for epochs, earlier in done.items():
        if epochs != max_epochs and earlier == steps:
            raise UserError(
                f"training_func ran {steps} optimizer steps for max_epochs={epochs}, and {steps} for "
                f"max_epochs={max_epochs}: it ignores max_epochs"
            )
    done[max_epochs] = steps


def _code_of(function: Callable[..., Any]) -> Any:
    """The code of a plain Python function or method; None where something stands in between."""
    if isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        return None
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        call = type(function).__call__ if not isinstance(function, type) else None
        return getattr(call, "__code__", None)
    return function.__code__
