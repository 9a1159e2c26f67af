"""A training that was cut off and goes on ends with the same bits as one that was not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from transformers import EarlyStoppingCallback

from nnicompress.errors import UserError
from nnicompress.events import EpochDone, Event, Listener, StepDone
from nnicompress.trace import trace
from tests.evaluators.cases import (
    assert_cut_between_trainings_changes_nothing,
    assert_equal_weights,
    train_or_be_killed,
)
from tests.evaluators.transformers.cases import Rows, make_bert, make_evaluator


def train(
    make: Callable[[], Any],
    stop_at: int | None,
    state: Any = None,
    trainings: int = 1,
    epochs: int = 3,
    heard: Listener = lambda event: None,
) -> tuple[Any, Any, Any]:
    """Weights, training state and result; killed after `stop_at` steps, or going on from `(weights, state)`."""

    def evaluator(listener: Listener) -> Any:
        def listen(event: Event) -> None:
            heard(event)
            listener(event)

        return make().evaluator(listen)

    return train_or_be_killed(make_bert(), evaluator, stop_at, state, trainings=trainings, max_epochs=epochs)


class Case:
    """How an evaluator is built, again and again."""

    def __init__(self, *, args: dict[str, Any] | None = None, **more: Any) -> None:
        self.args, self.more = args or {}, more

    def __call__(self) -> Case:
        return self

    def evaluator(self, listener: Any) -> Any:
        return make_evaluator(args=self.args, listener=listener, **self.more)


def noisy(**args: Any) -> Case:
    """Random augmentation from the generator that dropout uses, and an evaluation each epoch; 5 batches an epoch."""
    return Case(args={"eval_strategy": "epoch", **args}, train_dataset=Rows(noise=True))


PLATEAU = {
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"patience": 0},
    "train_sampling_strategy": "group_by_length",
    "dataloader_drop_last": True,
}
SAMPLER = {"accelerator_config": {"use_seedable_sampler": False}}


@pytest.mark.parametrize("stop_at", [2, 5, 8, 15])
@pytest.mark.parametrize("args", [{}, SAMPLER, PLATEAU], ids=["seeded sampler", "global sampler", "plateau"])
def test_going_on_ends_with_the_same_bits(args: dict[str, Any], stop_at: int) -> None:
    make = noisy(**args)
    expected, _, whole = train(make, None)
    weights, state, _ = train(make, stop_at)
    assert state["steps"] == stop_at
    found, _, result = train(make, None, (weights, state))
    assert_equal_weights(found, expected)
    assert result == whole and result.steps == 15 and len(result.metrics) == 3


@pytest.mark.parametrize("stop_at", [4, 5, 6, 15])
def test_each_step_and_each_epoch_is_told_once_over_both_parts(stop_at: int) -> None:
    def told(stop: int | None, state: Any = None) -> tuple[list[Event], Any]:
        events: list[Event] = []
        weights, saved, _ = train(Case(args={"eval_strategy": "epoch"}), stop, state, heard=events.append)
        return [event for event in events if isinstance(event, StepDone | EpochDone)], (weights, saved)

    whole, _ = told(None)
    before, state = told(stop_at)
    after, _ = told(None, state)
    assert [*before, *after] == whole and sum(isinstance(event, EpochDone) for event in whole) == 3


@pytest.mark.parametrize("stop_at", [1, 2, 6])
def test_between_two_accumulations(stop_at: int) -> None:
    make = noisy(gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=2)
    expected, _, whole = train(make, None)
    weights, state, _ = train(make, stop_at)
    found, _, result = train(make, None, (weights, state))
    assert_equal_weights(found, expected)
    assert result == whole and result.steps == 9


def test_with_a_described_optimizer_in_bfloat16() -> None:
    optimizer = trace(SGD)(make_bert().named_parameters(), lr=0.1, momentum=0.9)
    make = Case(args={"bf16": True}, optimizers=optimizer, lr_schedulers=trace(OneCycleLR)(max_lr=0.1))
    expected, _, whole = train(make, None)
    weights, state, _ = train(make, 7)
    found, _, result = train(make, None, (weights, state))
    assert_equal_weights(found, expected)
    assert result == whole


def test_the_best_weights_and_the_patience_are_in_the_state() -> None:
    make = noisy(
        save_strategy="best", load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True
    )
    make.more["callbacks"] = [EarlyStoppingCallback(early_stopping_patience=2)]
    expected, _, whole = train(make, None, epochs=5)
    losses = [metrics["loss"] for metrics in whole.metrics]
    assert max(losses) == losses[1] and whole.steps == 20, "this case finds its best before it is cut off"
    weights, state, _ = train(make, 17, epochs=5)
    found, _, result = train(make, None, (weights, state), epochs=5)
    assert_equal_weights(found, expected)
    assert result == whole


def test_a_later_training_goes_on_as_that_one() -> None:
    expected, _, whole = train(noisy(), None, trainings=2)
    model = make_bert()
    states: list[Any] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 4:
            states.append(copy.deepcopy((model.state_dict(), evaluator.state_dict())))

    evaluator = noisy().evaluator(listen)
    with evaluator.bound(model):
        evaluator.train(max_epochs=3)
        evaluator.train(max_epochs=3)
    found, _, result = train(noisy(), None, states[1])
    assert_equal_weights(found, expected)
    assert result == whole


@pytest.mark.parametrize("steps", [4, 5])
def test_cut_off_after_the_last_step_the_next_training_is_as_it_would_have_been(steps: int) -> None:
    """5 batches are an epoch."""

    def evaluator(model: Any, listener: Listener) -> Any:
        return noisy().evaluator(listener)

    assert_cut_between_trainings_changes_nothing(make_bert, evaluator, steps, epochs=2 if steps == 5 else 0)


def test_a_state_of_another_optimizer_is_told() -> None:
    _, state, _ = train(noisy(), 2)
    evaluator = Case(optimizers=trace(SGD)(make_bert().named_parameters(), lr=0.1)).evaluator(lambda event: None)
    with evaluator.bound(make_bert()):
        with pytest.raises(UserError, match="no training state"):
            evaluator.state_dict()
        evaluator.load_state_dict(state)
        with pytest.raises(UserError, match="the training state has 2 parameter groups, and the Trainer's optimizer 1"):
            evaluator.train(max_epochs=3)
