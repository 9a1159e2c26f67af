"""Iterating shows gradients and changes nothing; example inputs are the bound model's real ones."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from nnicompress.errors import UserError
from nnicompress.trace import trace
from tests.evaluators.cases import assert_equal_weights, make_dataset, weights
from tests.evaluators.lightning.cases import Net, make_evaluator, make_trainer, ordered


class Loud(Callback):
    """A callback that must not take part."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("the user's callbacks take no part in a dry run")


class ModuleCallback(Net):
    """Brings a callback and a schedule of its own, and validates with numbers drawn."""

    def configure_callbacks(self) -> Any:
        class Meddle(Callback):
            def on_train_start(self, trainer: Any, module: Any) -> None:
                raise AssertionError("nor do the module's")

        return Meddle()

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = OneCycleLR(optimizer, 0.2, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        raise AssertionError("a dry run validates nothing")


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return ordered()

    def val_dataloader(self) -> Any:
        return ordered(40)


def numbers() -> tuple[Any, ...]:
    return random.random(), np.random.random(), torch.rand(2).tolist()


@pytest.mark.parametrize("built", [False, True])
def test_the_gradients_are_those_of_a_backward_by_hand(built: bool, tmp_path: Any) -> None:
    settings: dict[str, Any] = {"callbacks": [Loud()], "logger": CSVLogger(str(tmp_path)), "max_epochs": 2}
    trainer = Trainer(**settings, accelerator="cpu") if built else make_trainer(**settings)
    model, expected = ModuleCallback(), Net()
    evaluator = make_evaluator(trainer, Data())
    found: list[dict[str, Tensor]] = []
    torch.manual_seed(3)
    with evaluator.bound(model):
        evaluator.before_step(lambda e: found.append({n: p.grad.clone() for n, p in e.model.named_parameters()}))
        evaluator.iterate(8)
    torch.manual_seed(3)
    batches = [*ordered(), *ordered()][:8]
    for (inputs, targets), gradients in zip(batches, found, strict=True):
        expected.zero_grad()
        nn.functional.cross_entropy(expected(inputs), targets).backward()
        for name, parameter in expected.named_parameters():
            assert torch.equal(gradients[name], parameter.grad), name
    assert not list(tmp_path.iterdir())


def test_weights_buffers_gradients_modes_loaders_and_random_states_are_as_before() -> None:
    class Meddling(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            numbers()
            with torch.no_grad():
                self.net[0].weight.clamp_(-0.01, 0.01)
            self.net[1].running_mean = torch.ones(12)
            self.seen = batch_idx
            return super().training_step(batch, batch_idx)

    model, generator = Meddling(), torch.Generator().manual_seed(3)
    loader = DataLoader(make_dataset(), batch_size=8, shuffle=True, generator=generator)
    nn.functional.cross_entropy(model(torch.randn(4, 5)), torch.zeros(4).long()).backward()
    model.net[1].eval()
    before, gradients = weights(model), [parameter.grad for parameter in model.parameters()]
    values = [gradient.clone() for gradient in gradients]
    tensors = [id(tensor) for tensor in model.state_dict(keep_vars=True).values()]
    drawn, attributes = generator.get_state(), vars(model).copy()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = numbers()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    evaluator = make_evaluator(data={"train": loader})
    with evaluator.bound(model):
        evaluator.before_step(lambda event: numbers())
        evaluator.iterate(8)
        evaluator.example_inputs()
    assert numbers() == expected
    assert_equal_weights(model, before)
    assert torch.equal(generator.get_state(), drawn)
    assert [id(tensor) for tensor in model.state_dict(keep_vars=True).values()] == tensors
    assert [module.training for module in model.net] == [True, False, True, True, True]
    for parameter, gradient, value in zip(model.parameters(), gradients, values, strict=True):
        assert parameter.grad is gradient and torch.equal(gradient, value)
    assert vars(model) == attributes


def test_batches_of_a_frozen_model_are_shown() -> None:
    model, seen = Net().requires_grad_(False), list[Tensor]()
    evaluator = make_evaluator()
    model.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with evaluator.bound(model):
        evaluator.iterate(3)
    assert len(seen) == 3


def test_iterating_first_does_not_change_the_training() -> None:
    results = []
    for iterations in (0, 3):
        model = Net()
        generator = torch.Generator().manual_seed(2)
        loader = DataLoader(make_dataset(), batch_size=8, shuffle=True, generator=generator)
        evaluator = make_evaluator(data={"train": loader})
        torch.manual_seed(5)
        with evaluator.bound(model):
            if iterations:
                evaluator.iterate(iterations)
                evaluator.example_inputs()
            evaluator.train(max_epochs=2)
        results.append(model)
    assert_equal_weights(*results)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_is_what_one_step_takes(accumulate: int) -> None:
    model, seen = Net(), list[int]()
    model.net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    evaluator = make_evaluator(make_trainer(accumulate_grad_batches=accumulate))
    with evaluator.bound(model):
        evaluator.iterate(4)
    assert len(seen) == 4 * accumulate


def test_a_recipes_optimizer_and_schedule_serve_too() -> None:
    model, steps = Net(), list[int]()
    optimizer = trace(SGD)(model.parameters(), lr=0.1)
    evaluator = make_evaluator(optimizers=optimizer, lr_schedulers=trace(OneCycleLR)(max_lr=0.1))
    scale, before = nn.Parameter(torch.ones(1)), weights(model)
    with evaluator.bound(model):
        evaluator.before_step(lambda event: steps.append(event.step))
        evaluator.add_parameters([("scale", scale)])
        evaluator.add_penalty(lambda model: scale.sum())
        evaluator.iterate(5)
    assert steps == [1, 2, 3, 4, 5] and scale.item() == 1.0 and scale.grad is None
    assert_equal_weights(model, before)


def test_the_first_batch_serves_as_example_inputs() -> None:
    model, first = Net(), next(iter(ordered()))[0]
    evaluator = make_evaluator()
    before = torch.get_rng_state()
    with evaluator.bound(model):
        for batch_size, rows in ((None, range(8)), (3, range(3)), (11, [*range(8), 0, 1, 2])):
            (inputs,), kwargs = evaluator.example_inputs(batch_size)
            assert torch.equal(inputs, first[list(rows)]) and kwargs == {}
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_is_never_called_shows_no_inputs_and_a_dummy_input_serves() -> None:
    class Around(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    model = Around()
    evaluator = make_evaluator()
    with evaluator.bound(model), pytest.raises(UserError, match="never calls the bound model.*give dummy_input"):
        evaluator.example_inputs()
    evaluator = make_evaluator(dummy_input=torch.ones(2, 5))
    with evaluator.bound(model):
        assert evaluator.example_inputs()[0][0].shape == (2, 5)
