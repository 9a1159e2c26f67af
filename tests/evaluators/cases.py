"""A tiny classification problem, a model with dropout and batch-norm, and loops as users write them."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.events import EpochDone, Event, Listener, StepDone
from nnicompress.trace import trace

NUM_BATCHES = 6
BATCH_SIZE = 8


def make_model(seed: int = 0, hidden: int = 12) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 3))


def make_dataset(num_samples: int = NUM_BATCHES * BATCH_SIZE) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(num_samples, 5, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long())


def make_loader(seed: int = 0, num_samples: int = NUM_BATCHES * BATCH_SIZE) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(make_dataset(num_samples), batch_size=BATCH_SIZE, shuffle=True, generator=generator)


def training_step(batch: Any, model: nn.Module) -> Tensor:
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


def tuple_step(batch: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    inputs, targets = batch
    outputs = model(inputs)
    return nn.functional.cross_entropy(outputs, targets), outputs


def dict_step(batch: Any, model: nn.Module) -> dict[str, Tensor]:
    loss, outputs = tuple_step(batch, model)
    return {"loss": loss, "outputs": outputs}


def user_loop(
    model: nn.Module,
    optimizers: Any,
    training_step: Callable[[Any, nn.Module], Tensor],
    lr_schedulers: Any,
    max_steps: int | None,
    max_epochs: int | None,
) -> None:
    """What a user's own loop looks like."""
    model.train()
    step, epoch = 0, 0
    while max_epochs is None or epoch < max_epochs:
        for batch in make_loader(epoch):
            optimizers.zero_grad()
            training_step(batch, model).backward()
            optimizers.step()
            if lr_schedulers is not None:
                lr_schedulers.step()
            step += 1
            if step == max_steps:
                return
        epoch += 1


def make_evaluator(model: nn.Module, loop: Any = user_loop, step: Any = training_step, **more: Any) -> TorchEvaluator:
    optimizers = more.pop("optimizers", None) or trace(torch.optim.SGD)(model.parameters(), lr=0.1, momentum=0.9)
    return TorchEvaluator(loop, optimizers, step, **more)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal_weights(found: nn.Module | dict[str, Tensor], expected: nn.Module | dict[str, Tensor]) -> None:
    """Bit by bit."""
    found = found if isinstance(found, dict) else found.state_dict()
    expected = expected if isinstance(expected, dict) else expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


class Killed(Exception):
    """What ends a training in its middle."""


def train_or_be_killed(
    model: nn.Module,
    make_evaluator: Callable[[Listener], Any],
    stop_at: int | None,
    state: tuple[Mapping[str, Tensor], Any] | None = None,
    *,
    trainings: int = 1,
    **limits: int,
) -> tuple[dict[str, Tensor], Any, Any]:
    """Weights, training state and the last result of `trainings`; the state only where it was killed.

    That is after `stop_at` steps. With a `state`, weights and training state, it goes on as a new process would.
    """
    saved: list[Any] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == stop_at:
            saved.append(evaluator.state_dict())
            raise Killed

    evaluator = make_evaluator(listen)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    if state is not None:
        torch.manual_seed(99)  # a new process has other random states
        buffer = io.BytesIO()
        torch.save(state[1], buffer)
        buffer.seek(0)
        model.load_state_dict(state[0])
        evaluator.load_state_dict(torch.load(buffer, weights_only=True))
    result = None
    with evaluator.bound(model), suppress(Killed):
        for _ in range(trainings):
            result = evaluator.train(**limits)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return weights, saved[0] if saved else None, result


def assert_cut_between_trainings_changes_nothing(
    make_model: Callable[[], nn.Module],
    make_evaluator: Callable[[nn.Module, Listener], Any],
    steps: int,
    *,
    epochs: int,
) -> None:
    """Two trainings, the first of which is cut off after its last step, and goes on in a new evaluator.

    Weights, results, and all steps and epochs that are told, `epochs` of them, are as without the cut.
    """

    def run(killed: bool) -> tuple[nn.Module, list[Any], list[Event]]:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        model, events, saved = make_model(), list[Event](), list[Any]()

        def listen(event: Event) -> None:
            if isinstance(event, StepDone | EpochDone):
                events.append(event)
            if killed and not saved and isinstance(event, StepDone) and event.step == steps:
                state = copy.deepcopy((model.state_dict(), evaluator.state_dict()))
                saved.append(state)
                raise Killed

        evaluator = make_evaluator(model, listen)
        with evaluator.bound(model), suppress(Killed):
            return model, [evaluator.train(max_steps=steps) for _ in range(2)], events
        torch.manual_seed(99)  # a new process has other random states
        evaluator = make_evaluator(model, listen)
        model.load_state_dict(saved[0][0])
        evaluator.load_state_dict(saved[0][1])
        with evaluator.bound(model):
            return model, [evaluator.train(max_steps=steps) for _ in range(2)], events

    (expected, whole, told), (found, results, told_in_parts) = run(False), run(True)
    assert_equal_weights(found.state_dict(), expected.state_dict())
    assert results == whole
    assert told_in_parts == told
    assert sum(isinstance(event, EpochDone) for event in told) == epochs
