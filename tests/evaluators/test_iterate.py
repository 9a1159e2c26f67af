"""Iterating shows gradients and changes nothing; example inputs are the model's real ones."""

from __future__ import annotations

import contextlib
import random
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from nnicompress.errors import UserError
from nnicompress.evaluators.inputs import as_model_input, resized
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.trace import trace
from tests.evaluators.cases import (
    NUM_BATCHES,
    assert_equal_weights,
    make_evaluator,
    make_loader,
    make_model,
    training_step,
    user_loop,
    weights,
)


def numbers() -> tuple[Any, ...]:
    return random.random(), np.random.random(), torch.rand(2).tolist()


@pytest.mark.parametrize("loop", [user_loop, TrainingLoop(make_loader)])
def test_batches_of_a_frozen_model_are_shown(loop: Any) -> None:
    model, seen = make_model().requires_grad_(False), list[torch.Tensor]()
    evaluator = make_evaluator(model, loop)
    model.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with evaluator.bound(model):
        evaluator.iterate(3)
        assert len(seen) == 3
        with pytest.raises((UserError, RuntimeError), match="requires_grad|require grad"):
            evaluator.train(max_steps=1)


@pytest.mark.parametrize("loop", [user_loop, TrainingLoop(make_loader)])
def test_the_gradients_are_those_of_a_backward_by_hand(loop: Any) -> None:
    model, expected = make_model(), make_model()
    evaluator = make_evaluator(model, loop, lr_schedulers=trace(OneCycleLR)(max_lr=0.1))
    found: list[dict[str, torch.Tensor]] = []
    torch.manual_seed(3)
    with evaluator.bound(model):
        evaluator.before_step(lambda e: found.append({n: p.grad.clone() for n, p in e.model.named_parameters()}))
        evaluator.iterate(4)

    torch.manual_seed(3)
    expected.train()
    for (inputs, targets), gradients in zip(make_loader(0), found, strict=False):
        expected.zero_grad()
        nn.functional.cross_entropy(expected(inputs), targets).backward()
        for name, parameter in expected.named_parameters():
            assert torch.equal(gradients[name], parameter.grad), name
    assert len(found) == 4


def test_weights_buffers_gradients_modes_and_random_states_are_as_before() -> None:
    model = make_model()
    nn.functional.cross_entropy(model(torch.randn(4, 5)), torch.zeros(4).long()).backward()
    model[1].eval()
    before, gradients = weights(model), [parameter.grad for parameter in model.parameters()]
    values = [gradient.clone() for gradient in gradients]
    tensors = [id(tensor) for tensor in model.state_dict(keep_vars=True).values()]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = numbers()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])

    def draws(event: Any) -> None:
        numbers()

    def meddles(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        user_loop(model, optimizer, step, scheduler, max_steps, max_epochs)
        with torch.no_grad():
            model[0].weight.clamp_(-0.01, 0.01)
            model[1].running_mean = torch.ones(12)

    evaluator = make_evaluator(model, meddles)
    with evaluator.bound(model):
        evaluator.before_step(draws)
        evaluator.iterate(5)
    assert numbers() == expected
    assert_equal_weights(model, before)
    assert [id(tensor) for tensor in model.state_dict(keep_vars=True).values()] == tensors
    assert [module.training for module in model] == [True, False, True, True, True]
    for parameter, gradient, value in zip(model.parameters(), gradients, values, strict=True):
        assert parameter.grad is gradient and torch.equal(gradient, value)


def test_iterating_first_does_not_change_the_training() -> None:
    results = []
    for iterations in (0, 3):
        model = make_model()
        evaluator = make_evaluator(model, TrainingLoop(make_loader))
        torch.manual_seed(5)
        with evaluator.bound(model):
            if iterations:
                evaluator.iterate(iterations)
                evaluator.example_inputs()
            evaluator.train(max_epochs=2)
        results.append(model)
    assert_equal_weights(results[0], results[1])


def test_a_loop_that_would_go_on_is_left_after_the_batches_asked_for() -> None:
    def loop(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        while True:
            with contextlib.suppress(Exception):  # a loop that survives everything
                user_loop(model, optimizer, step, scheduler, None, 1)

    model, steps = make_model(), []
    evaluator = make_evaluator(model, loop)
    with evaluator.bound(model):
        evaluator.before_step(lambda event: steps.append(event.step))
        evaluator.iterate(NUM_BATCHES + 2)
    assert steps == list(range(1, NUM_BATCHES + 3))


def test_too_few_batches_are_a_warning() -> None:
    def loop(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        user_loop(model, optimizer, step, scheduler, 2, 1)

    model = make_model()
    evaluator = make_evaluator(model, loop)
    with evaluator.bound(model), pytest.warns(UserWarning, match="ran 2 optimizer steps; .* 3 too few"):
        evaluator.iterate(5)


@pytest.mark.parametrize("loop", [user_loop, TrainingLoop(make_loader)])
def test_the_first_batch_serves_as_example_inputs(loop: Any) -> None:
    model = make_model()
    first = next(iter(make_loader(0)))[0]
    evaluator = make_evaluator(model, loop)
    before = torch.get_rng_state()
    with evaluator.bound(model):
        for batch_size, rows in ((None, range(8)), (3, range(3)), (11, [*range(8), 0, 1, 2])):
            (inputs,), kwargs = evaluator.example_inputs(batch_size)
            assert torch.equal(inputs, first[list(rows)]) and kwargs == {}
    assert torch.equal(torch.get_rng_state(), before)


def test_keyword_inputs_are_found_as_the_model_gets_them() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor, *, scale: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
            return self.linear(x) * scale * factor

    model = TwoInputs()

    def step(batch: Any, model: nn.Module) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(model(inputs, scale=torch.ones(8, 1), factor=2.0), targets)

    evaluator = make_evaluator(model, step=step)
    with evaluator.bound(model):
        args, kwargs = evaluator.example_inputs(2)
    assert args[0].shape == (2, 5) and kwargs["scale"].shape == (2, 1) and kwargs["factor"] == 2.0


def test_dummy_input_needs_nothing_else() -> None:
    tensor, mask = torch.arange(10.0).reshape(2, 5), torch.ones(2, 7)
    Pair = namedtuple("Pair", "a b")
    for given, expected in (
        (tensor, ((tensor,), {})),
        ((tensor, mask), ((tensor, mask), {})),
        ({"x": tensor, "mask": mask}, ((), {"x": tensor, "mask": mask})),
    ):
        evaluator = TorchEvaluator(dummy_input=given)  # type: ignore[arg-type]
        with evaluator.bound(nn.Linear(5, 3)):
            found = evaluator.example_inputs()
        assert str(found) == str(expected)
    nested = as_model_input((Pair(tensor, [mask, torch.tensor(3.0)]), torch.ones(5)))
    (pair, other), _ = resized(nested, 5)
    assert isinstance(pair, Pair) and pair.a.shape == (5, 5) and pair.b[0].shape == (5, 7) and pair.b[1].shape == ()
    assert other.shape == (5,)
    assert torch.equal(pair.a[4], tensor[0])
    with pytest.raises(UserError, match="batch size 0 can't be made of a batch of 2"):
        resized(nested, 0)


def test_a_loop_that_never_calls_the_model_shows_no_inputs() -> None:
    def step(batch: Any, model: Any) -> torch.Tensor:
        return model.forward(batch[0]).sum()

    model = make_model()
    evaluator = make_evaluator(model, step=step)
    with evaluator.bound(model), pytest.raises(UserError, match="never calls the model.*give dummy_input"):
        evaluator.example_inputs()


def test_schedulers_are_real_while_iterating() -> None:
    rates = []

    def loop(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for batch in list(make_loader(0))[:max_steps]:
            step(batch, model).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            rates.append(scheduler.get_last_lr()[0])

    model = make_model()
    evaluator = TorchEvaluator(
        loop, trace(SGD)(model.parameters(), lr=0.1, momentum=0.9), training_step, trace(OneCycleLR)(max_lr=0.4)
    )
    with evaluator.bound(model):
        evaluator.iterate(4)
    real = SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler, expected = OneCycleLR(real, max_lr=0.4, total_steps=4), []
    for _ in range(4):
        real.step()
        scheduler.step()
        expected.append(scheduler.get_last_lr()[0])
    assert rates == expected
