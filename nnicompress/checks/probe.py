"""Small trials of the user's objects: are optimizer and scheduler built, does one small batch pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from nnicompress.data.roles import Data
from nnicompress.errors import UserError
from nnicompress.evaluators.contract import Evaluator, ModelInput
from nnicompress.evaluators.inputs import resized
from nnicompress.evaluators.optimizers import OptimizerSpec
from nnicompress.evaluators.rebuild import Rebuilder
from nnicompress.evaluators.training_step import split_batch
from nnicompress.trace import Traced

NUM_STEPS = 1000
"""Steps that a scheduler is told of; any number would do, it is never stepped."""


def training_objects_built(optimizer: OptimizerSpec, scheduler: Traced | None, model: nn.Module) -> bool:
    """True; a UserError where the optimizer or the scheduler can't be built for `model`."""
    try:
        Rebuilder(optimizer, scheduler).build(model, (), lambda: NUM_STEPS)
    except UserError:
        raise
    except Exception as error:  # a constructor of anybody's may raise anything
        name = optimizer.traced.name if scheduler is None else scheduler.name
        raise UserError(f"{name}: {_first_line(error)}") from error
    return True


def on_first_batch(called: Callable[..., Any], *args: Any) -> Any:
    """`called(*args)`; a UserError where it raises."""
    try:
        return called(*args)
    except UserError:
        raise
    except Exception as error:  # a forward of anybody's may raise anything
        raise UserError(f"on the first batch it raises {type(error).__name__}: {_first_line(error)}") from error


def first_inputs(evaluator: Evaluator, model: nn.Module) -> ModelInput:
    """The inputs of the model's first call in the evaluator's training, two samples of them."""
    with evaluator.bound(model):
        return on_first_batch(evaluator.example_inputs, 2)  # type: ignore[no-any-return]


def measured(evaluator: Evaluator, model: nn.Module) -> dict[str, float]:
    """What the evaluator measures on its validation data."""
    try:
        with evaluator.bound(model):
            return on_first_batch(evaluator.evaluate)  # type: ignore[no-any-return]
    except UserError as error:
        raise UserError(str(error).removeprefix("metric: ")) from error


def two_samples(data: Data) -> tuple[Any, Any]:
    """Inputs and targets of the first two samples of the validation role."""
    batch = next(iter(data.validation_loader()), None)
    if batch is None:
        raise UserError("the validation data have no batches")
    return split_batch(resized(((batch,), {}), 2)[0][0])


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Building a model draws random numbers; a check must not change those of the run behind it."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
