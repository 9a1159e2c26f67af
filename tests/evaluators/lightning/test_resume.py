"""A Lightning training that is cut off, also inside an epoch, ends with the same bits as one that was not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import DataLoader, IterableDataset

from nnicompress.errors import UserError
from nnicompress.events import EpochDone, Event, Listener, StepDone, TrainingFinished, TrainingStarted
from nnicompress.trace import trace
from tests.evaluators.cases import (
    Killed,
    assert_cut_between_trainings_changes_nothing,
    assert_equal_weights,
    make_dataset,
    train_or_be_killed,
)
from tests.evaluators.lightning.cases import Net, make_evaluator, make_trainer, ordered
from tests.evaluators.lightning.test_train import TwoOptimizers
from tests.evaluators.test_loop import seeded_loader


def globally_shuffled() -> DataLoader[Any]:
    """Order and augmentation come from the global generators."""

    def collate(samples: list[Any]) -> Any:
        inputs, targets = (torch.stack(part) for part in zip(*samples, strict=True))
        return inputs + 0.1 * torch.randn(inputs.shape) + random.random() + np.random.random(), targets

    return DataLoader(make_dataset(), batch_size=8, shuffle=True, collate_fn=collate)


def own_generator() -> DataLoader[Any]:
    return DataLoader(make_dataset(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5))


class Module(LightningDataModule):
    def train_dataloader(self) -> Any:
        return globally_shuffled()

    def val_dataloader(self) -> Any:
        return ordered(40)


class WithOneCycle(Net):
    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.02)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(optimizer, max_lr=0.05, total_steps=steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class WithStepLR(Net):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [StepLR(optimizer, step_size=1, gamma=0.5)]


def train(
    data: Any,
    net: Any,
    stop_at: int | None,
    state: Any = None,
    limits: dict[str, int] | None = None,
    **settings: Any,
) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """Weights, training state and result; killed after `stop_at` steps, or going on from `(weights, state)`."""

    def evaluator(listener: Listener) -> Any:
        return make_evaluator(make_trainer(**settings), data(), listener=listener)

    return train_or_be_killed(net(), evaluator, stop_at, state, **(limits or {"max_epochs": 3}))


def assert_goes_on(data: Any, net: Any, stop_at: int, **more: Any) -> Any:
    """Cut after `stop_at` steps and resumed, it ends with the bits, losses and metrics of the whole training."""
    expected, _, whole = train(data, net, None, **more)
    weights, state, _ = train(data, net, stop_at, **more)
    assert state["steps"] == stop_at
    found, _, result = train(data, net, None, (weights, state), **more)
    assert result == whole
    assert_equal_weights(found, expected)
    return result


def mapping(loader: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {"train": loader(), "validation": ordered(40)}


DATA: dict[str, Callable[[], Any]] = {
    "global": mapping(globally_shuffled),
    "own generator": mapping(own_generator),
    "seeded sampler": mapping(lambda: seeded_loader(3, 48)),
    "datamodule": Module,
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("stop_at", [4, 6, 18])
def test_going_on_ends_with_the_same_bits(data: Callable[[], Any], stop_at: int) -> None:
    result = assert_goes_on(data, WithOneCycle, stop_at)
    assert result.steps == 18 and len(result.metrics) == 3


@pytest.mark.parametrize("persistent", [False, True])
def test_with_workers(persistent: bool) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(make_dataset(), 8, shuffle=True, num_workers=1, persistent_workers=persistent)

    assert_goes_on(mapping(loader), Net, 4)


@pytest.mark.parametrize("stop_at", [3, 6, 9])
def test_with_hooks_that_draw_numbers(stop_at: int) -> None:
    """Before the epoch's order is drawn, and after its iterator is made."""

    class Drawing(Net):
        def on_fit_start(self) -> None:
            torch.rand(2)

        on_train_start = on_train_epoch_start = on_train_epoch_end = on_validation_epoch_end = on_fit_start

    assert_goes_on(mapping(globally_shuffled), Drawing, stop_at)


def test_with_data_of_unknown_length() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([make_dataset()[index] for index in range(48)])

    result = assert_goes_on(mapping(lambda: DataLoader(Stream(), batch_size=8)), Net, 9)
    assert result.steps == 18 and result.epochs is None


@pytest.mark.parametrize("stop_at", [3, 4, 5])
def test_with_accumulation_and_a_schedule_by_epochs(stop_at: int) -> None:
    """6 batches in windows of 4: 2 steps an epoch."""
    result = assert_goes_on(mapping(globally_shuffled), WithStepLR, stop_at, accumulate_grad_batches=4)
    assert result.steps == 6 and result.epochs == 3.0


@pytest.mark.parametrize(
    "settings", [{"val_check_interval": 0.5}, {"val_check_interval": 4, "check_val_every_n_epoch": None}], ids=str
)
@pytest.mark.parametrize("stop_at", [3, 8])
def test_with_validations_inside_the_epoch(settings: dict[str, Any], stop_at: int) -> None:
    assert len(assert_goes_on(mapping(globally_shuffled), WithStepLR, stop_at, **settings).metrics) == 3


@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 5}], ids=str)
@pytest.mark.parametrize("stop_at", [3, 4])
def test_with_manual_optimization(limits: dict[str, int], stop_at: int) -> None:
    assert_goes_on(mapping(globally_shuffled), TwoOptimizers, stop_at, limits=limits)


@pytest.mark.parametrize("stop_at", [3, 6, 13])
def test_with_a_number_of_steps(stop_at: int) -> None:
    result = assert_goes_on(mapping(globally_shuffled), WithOneCycle, stop_at, limits={"max_steps": 14})
    assert result.steps == 14 and len(result.metrics) == 2


CALLBACKS: dict[str, tuple[Any, int]] = {
    "SWA": (trace(StochasticWeightAveraging)(swa_lrs=0.05, swa_epoch_start=1), 18),
    "EMA": (trace(EMAWeightAveraging)(decay=0.9), 18),
    "early stopping": (trace(EarlyStopping)("val_loss", mode="max", patience=1), 12),
    "checkpoints": (trace(ModelCheckpoint)(monitor="val_acc"), 18),
}


@pytest.mark.parametrize(("callback", "steps"), CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize("at", [4, 9, "end"])
def test_with_callbacks_that_hold_a_state(callback: Any, steps: int, at: int | str) -> None:
    stop_at = steps if at == "end" else at
    result = assert_goes_on(mapping(globally_shuffled), Net, stop_at, callbacks=[callback])  # type: ignore[arg-type]
    assert result.steps == steps


@pytest.mark.parametrize("asked", [4, 8])
def test_a_training_that_is_done_goes_on_where_it_ended(asked: int) -> None:
    """Also in the middle of an epoch, as the torch evaluator does."""

    def run(first: int | None) -> tuple[Net, Any]:
        model, evaluator = Net(), make_evaluator(data=mapping(globally_shuffled)())
        torch.manual_seed(1)
        with evaluator.bound(model):
            if first is not None:
                evaluator.train(max_steps=first)
                evaluator.load_state_dict(evaluator.state_dict())
            return model, evaluator.train(max_steps=14)

    random.seed(1)
    np.random.seed(1)
    expected, whole = run(None)
    random.seed(1)
    np.random.seed(1)
    found, result = run(asked)
    assert result == whole and result.steps == 14 and len(result.metrics) == 2
    assert_equal_weights(found, expected)


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("steps", [5, 6])
def test_cut_off_after_the_last_step_the_next_training_is_as_it_would_have_been(
    steps: int, data: Callable[[], Any]
) -> None:
    def evaluator(model: nn.Module, listener: Listener) -> Any:
        return make_evaluator(make_trainer(), data(), listener=listener)

    assert_cut_between_trainings_changes_nothing(Net, evaluator, steps, epochs=2 if steps == 6 else 0)


@pytest.mark.parametrize("loader", [lambda: seeded_loader(3, 48), globally_shuffled])
def test_the_second_training_sees_another_order_and_goes_on_in_it(loader: Callable[[], Any]) -> None:
    def run(stop_at: int | None, state: Any = None) -> tuple[list[list[float]], Net, Any]:
        model, orders, saved = Net(), list[list[float]](), list[Any]()

        def listen(event: Event) -> None:
            if isinstance(event, StepDone) and event.step == stop_at and len(orders) == 2:
                saved.append(evaluator.state_dict())
                raise Killed

        evaluator = make_evaluator(make_trainer(num_sanity_val_steps=0), mapping(loader)(), listener=listen)
        model.net.register_forward_pre_hook(lambda module, args: orders[-1].append(float(args[0].sum())))
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        with evaluator.bound(model):
            if state is None:
                orders.append([])
                evaluator.train(max_epochs=2)
            else:
                model.load_state_dict(state[0])
                evaluator.load_state_dict(state[1])
            orders.append([])
            try:
                evaluator.train(max_epochs=2)
            except Killed:
                return orders, model, ({n: t.clone() for n, t in model.state_dict().items()}, saved[0])
        return orders, model, None

    (first, second), expected, _ = run(None)
    _, _, state = run(8)
    (rest,), found, _ = run(None, state)
    assert_equal_weights(found, expected)
    assert rest[:4] == second[-9:-5] and second[:6] != first[:6]


def test_seeded_orders_count_on_over_trainings() -> None:
    loader = seeded_loader(3, 48)
    seen: list[int] = []
    original = loader.sampler.__iter__

    class Counting(type(loader.sampler)):  # type: ignore[misc]
        def __iter__(self) -> Any:
            seen.append(self.epoch)
            return original()

    loader.sampler.__class__ = Counting
    evaluator, model = make_evaluator(data={"train": loader}), Net()
    with evaluator.bound(model):
        evaluator.iterate(2)
        evaluator.train(max_epochs=2)
        evaluator.example_inputs()
        evaluator.train(max_steps=7)
        evaluator.train(max_epochs=1)
    assert seen == [0, 0, 1, 2, 2, 3, 3]


def test_states_that_do_not_fit_are_told() -> None:
    model, evaluator = Net(), make_evaluator()
    with evaluator.bound(model):
        with pytest.raises(UserError, match="no training state"):
            evaluator.state_dict()
        evaluator.train(max_steps=1)
        state = evaluator.state_dict()
        assert state["engine"] == "lightning" and state["checkpoint"].dtype == torch.uint8
        with pytest.raises(UserError, match="one of the torch evaluator"):
            evaluator.load_state_dict({**state, "engine": "torch"})
        evaluator.load_state_dict({**state, "num_optimizers": 2})
        with pytest.raises(UserError, match="has 2 optimizers, and the evaluator 1"):
            evaluator.train(max_steps=2)


def test_what_can_not_be_loaded_safely_is_told_when_it_is_saved() -> None:
    class Odd(Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = Killed("an object of a class of mine")

    model, evaluator = Odd(), make_evaluator()
    with evaluator.bound(model):
        evaluator.train(max_steps=1)
        with pytest.raises(UserError, match="holds an object that is no plain value"):
            evaluator.state_dict()


def test_a_recipes_optimizer_and_schedule_go_on_too() -> None:
    def run(stop_at: int | None, state: Any = None) -> tuple[Net, Any, Any]:
        model, saved = Net(), list[Any]()

        def listen(event: Event) -> None:
            if isinstance(event, StepDone) and event.step == stop_at:
                saved.append((model.state_dict(), evaluator.state_dict()))
                raise Killed

        evaluator = make_evaluator(
            data=mapping(own_generator)(),
            optimizers=trace(SGD)(model.parameters(), lr=0.1, momentum=0.9),
            lr_schedulers=trace(OneCycleLR)(max_lr=0.2),
            listener=listen,
        )
        torch.manual_seed(1)
        with evaluator.bound(model):
            if state is not None:
                model.load_state_dict(state[0])
                evaluator.load_state_dict(state[1])
            try:
                return model, None, evaluator.train(max_epochs=2)
            except Killed:
                return model, ({n: t.clone() for n, t in saved[0][0].items()}, saved[0][1]), None

    expected, _, whole = run(None)
    _, state, _ = run(7)
    found, _, result = run(None, state)
    assert result == whole
    assert_equal_weights(found, expected)


def test_epochs_are_told_once_each() -> None:
    for stop_at in (5, 6, 7, 18):
        events: list[Event] = []
        weights, state, _ = train(mapping(own_generator), Net, stop_at)
        model, evaluator = Net(), make_evaluator(data=mapping(own_generator)(), listener=events.append)
        model.load_state_dict(weights)
        evaluator.load_state_dict(state)
        with evaluator.bound(model):
            evaluator.train(max_epochs=3)
        steps = [event.step for event in events if isinstance(event, StepDone)]
        assert steps == list(range(stop_at + 1, 19))
        epochs = [event.epoch for event in events if isinstance(event, EpochDone)]
        assert epochs == {5: [1, 2, 3], 6: [1, 2, 3], 7: [2, 3], 18: [3]}[stop_at]
        assert isinstance(events[0], TrainingStarted) and events[-1] == TrainingFinished(18)
