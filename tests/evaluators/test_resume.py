"""A training that is cut off and goes on ends with the same bits as one that was not."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from nnicompress.errors import UserError
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.preserve import random_states, set_random_states
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.events import Listener
from nnicompress.trace import trace
from tests.evaluators.cases import (
    assert_cut_between_trainings_changes_nothing,
    assert_equal_weights,
    make_dataset,
    make_loader,
    make_model,
    train_or_be_killed,
    training_step,
    user_loop,
)
from tests.evaluators.test_loop import seeded_loader


def globally_shuffled(seed: int) -> Any:
    """A loader whose order and augmentation come from torch's global generator."""

    def collate(samples: list[Any]) -> Any:
        inputs, targets = (torch.stack(part) for part in zip(*samples, strict=True))
        return inputs + 0.1 * torch.randn(inputs.shape) + random.random() + np.random.random(), targets

    return torch.utils.data.DataLoader(make_dataset(), batch_size=8, shuffle=True, collate_fn=collate)


def train(
    loader: Callable[[int], Any], optimizer: Any, stop_at: int | None, state: Any = None, accumulate: int = 1
) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """Weights, training state and result; killed after `stop_at` steps, or going on from `(weights, state)`."""
    model = make_model()

    def evaluator(listener: Listener) -> TorchEvaluator:
        return TorchEvaluator(
            TrainingLoop(loader, seed=3, accumulate=accumulate),
            optimizer(model),
            training_step,
            trace(OneCycleLR)(max_lr=0.1),
            evaluating_func=lambda model: model[0].weight.sum(),
            listener=listener,
        )

    return train_or_be_killed(model, evaluator, stop_at, state, max_epochs=3)


@pytest.mark.parametrize("loader", [seeded_loader, make_loader, globally_shuffled])
@pytest.mark.parametrize("stop_at", [4, 6, 9, 18])
def test_going_on_ends_with_the_same_bits(loader: Callable[[int], Any], stop_at: int) -> None:
    def optimizer(model: nn.Module) -> Any:
        return trace(SGD)(model.parameters(), lr=0.1, momentum=0.9)

    expected, _, whole = train(loader, optimizer, None)
    weights, state, _ = train(loader, optimizer, stop_at)
    assert state["steps"] == stop_at
    found, _, result = train(loader, optimizer, None, (weights, state))
    assert_equal_weights(found, expected)
    assert result == whole and result.steps == 18 and len(result.metrics) == 3


def test_with_adam_and_accumulation() -> None:
    def optimizer(model: nn.Module) -> Any:
        return trace(AdamW)([{"params": model[:3].parameters(), "lr": 0.02}, {"params": model[4].parameters()}])

    expected, _, whole = train(seeded_loader, optimizer, None, accumulate=4)
    weights, state, _ = train(seeded_loader, optimizer, 3, accumulate=4)
    found, _, result = train(seeded_loader, optimizer, None, (weights, state), accumulate=4)
    assert_equal_weights(found, expected)
    assert result == whole and result.steps == 6


@pytest.mark.parametrize("steps", [5, 6])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_cut_off_after_the_last_step_the_next_training_is_as_it_would_have_been(steps: int, accumulate: int) -> None:
    """Be it in the middle of an epoch, or its end, which then is still to be told: 6 batches are an epoch."""

    def evaluator(model: nn.Module, listener: Listener) -> TorchEvaluator:
        loop = TrainingLoop(globally_shuffled, seed=3, accumulate=accumulate)
        optimizer = trace(SGD)(model.parameters(), lr=0.1)
        return TorchEvaluator(
            loop, optimizer, training_step, evaluating_func=lambda model: model[0].weight.sum(), listener=listener
        )

    assert_cut_between_trainings_changes_nothing(
        make_model, evaluator, steps // accumulate, epochs=2 if steps == 6 else 0
    )


def own_loop(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
    """Draws its batches from the global generator, so that it can go on anywhere."""
    dataset = make_dataset()
    for _ in range(max_steps):
        rows = torch.randint(len(dataset), (8,))
        optimizer.zero_grad()
        step(dataset[rows], model).backward()
        optimizer.step()
        scheduler.step()


def test_a_users_loop_is_asked_for_the_steps_that_are_left() -> None:
    def evaluator_of(model: nn.Module) -> TorchEvaluator:
        optimizer = trace(SGD)(model.parameters(), lr=0.1, momentum=0.9)
        return TorchEvaluator(own_loop, optimizer, training_step, trace(OneCycleLR)(max_lr=0.1, total_steps=10))

    expected, model = make_model(), make_model()
    torch.manual_seed(1)
    whole = evaluator_of(expected)
    with whole.bound(expected):
        losses = whole.train(max_steps=10).losses
    torch.manual_seed(1)
    first = evaluator_of(model)
    with first.bound(model):
        first.train(max_steps=5)
        state = first.state_dict()
    torch.manual_seed(50)
    second = evaluator_of(model)
    second.load_state_dict(state)
    with second.bound(model):
        result = second.train(max_steps=10)
        assert result.steps == 10 and result.losses == losses
        assert second.train(max_steps=2).steps == 2  # the state served one training
    with pytest.raises(UserError, match="can't go on after 5 steps, in the middle of max_epochs=3"):
        third = TorchEvaluator(user_loop, trace(SGD)(model.parameters(), lr=0.1), training_step)
        third.load_state_dict({**state, "schedulers": []})
        with third.bound(model):
            third.train(max_epochs=3)


def test_states_that_do_not_fit_are_told() -> None:
    model = make_model()
    evaluator = TorchEvaluator(TrainingLoop(make_loader), trace(SGD)(model.parameters(), lr=0.1), training_step)
    with evaluator.bound(model):
        with pytest.raises(UserError, match="no training state"):
            evaluator.state_dict()
        evaluator.train(max_steps=1)
        state = evaluator.state_dict()
        with pytest.raises(UserError, match="version None; this program reads 2"):
            evaluator.load_state_dict({})
        evaluator.load_state_dict({**state, "schedulers": [{}]})
        with pytest.raises(UserError, match="has 1 schedulers, and the evaluator 0"):
            evaluator.train(max_steps=2)
        evaluator.load_state_dict({**state, "loop": None})
        with pytest.raises(UserError, match="a training_func of your own"):
            evaluator.train(max_steps=2)


def test_saving_fires_what_precedes_a_checkpoint() -> None:
    model, fired = make_model(), []
    evaluator = TorchEvaluator(TrainingLoop(make_loader), trace(SGD)(model.parameters(), lr=0.1), training_step)
    with evaluator.bound(model):
        evaluator.before_evaluate(fired.append)
        evaluator.train(max_steps=1)
        evaluator.state_dict()
    assert fired == [model]


def test_random_states_round_trip_through_a_safe_file() -> None:
    random.gauss(0, 1)
    np.random.standard_normal()
    buffer = io.BytesIO()
    torch.save(random_states(), buffer)

    def draws() -> tuple[Any, ...]:
        return random.gauss(0, 1), random.random(), np.random.standard_normal(3).tolist(), torch.randn(3).tolist()

    expected = draws()
    buffer.seek(0)
    set_random_states(torch.load(buffer, weights_only=True))
    assert draws() == expected
