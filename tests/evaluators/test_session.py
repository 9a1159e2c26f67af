"""A session watches engines that hand forward and backward to `optimizer.step` as a closure, as it watches loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from nnicompress.errors import UserError
from nnicompress.evaluators.contract import StepEvent
from nnicompress.evaluators.registry import Registry
from nnicompress.evaluators.session import Hooks, Session, Step
from tests.evaluators.cases import assert_equal_weights, make_loader, make_model, training_step, weights

Call = Callable[[Optimizer, Callable[[], Tensor]], Any]

CALLS: dict[str, Call] = {
    "by keyword": lambda optimizer, closure: optimizer.step(closure=closure),
    "by position": lambda optimizer, closure: optimizer.step(closure),
}


def penalty(model: nn.Module) -> Tensor:
    return 0.1 * model.get_parameter("0.weight").square().sum()


def engine(model: nn.Module, call: Call, hooks: Hooks, steps: list[Step], *, clip: float = 0.5) -> SGD:
    """What an engine's automatic optimization does: two batches, clipped after the backward pass."""
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    session = Session(model, [optimizer], None, hooks, on_step=steps.append, closures=True)
    torch.manual_seed(1)
    with session.attached():
        for number, batch in enumerate(make_loader()):
            if number == 2:
                break

            def closure(batch: Any = batch) -> Tensor:
                optimizer.zero_grad()
                loss = session.take(training_step(batch, model))
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                return loss

            call(optimizer, closure)
            session.step_over()
    return optimizer


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_hooks_see_clipped_gradients_and_old_weights_and_the_training_is_that_of_a_loop(call: Call) -> None:
    model, hooks = make_model(), Hooks(Registry(), Registry(), Registry())
    seen: list[tuple[int, Tensor, Tensor]] = []
    steps: list[Step] = []

    def look(event: StepEvent) -> None:
        assert not torch.is_grad_enabled()
        weight = event.model.get_parameter("0.weight")
        assert weight.grad is not None
        seen.append((event.step, weight.grad.clone(), weight.clone()))

    hooks.before_step.add(look)
    hooks.penalties.add(penalty)
    engine(model, call, hooks, steps)

    truth = make_model()
    optimizer = SGD(truth.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(1)
    for number, batch in zip((1, 2), make_loader(), strict=False):
        optimizer.zero_grad()
        loss = training_step(batch, truth)
        (loss + penalty(truth)).backward()
        nn.utils.clip_grad_norm_(truth.parameters(), 0.5)
        weight = truth.get_parameter("0.weight")
        step, gradient, old = seen[number - 1]
        assert step == number and torch.equal(old, weight)
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-5, atol=1e-7)
        assert steps[number - 1] == Step(number, pytest.approx(loss.item(), rel=1e-6), 0.1)
        optimizer.step()
    for name, tensor in weights(truth).items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert not optimizer._optimizer_step_pre_hooks


def test_without_hooks_a_closure_gives_the_bits_of_a_loop() -> None:
    models = make_model(), make_model()
    for model, call in zip(models, CALLS.values(), strict=True):
        engine(model, call, Hooks(Registry(), Registry(), Registry()), [])
    assert_equal_weights(*models)


def test_an_optimizer_that_calls_its_closure_twice_is_refused() -> None:
    class Twice(SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            return super().step(closure)

    model, hooks = make_model(), Hooks(Registry(), Registry(), Registry())
    optimizer = Twice(model.parameters(), lr=0.1)
    session = Session(model, [optimizer], None, hooks, on_step=lambda step: None, closures=True)
    with session.attached(), pytest.raises(UserError, match="Twice calls its closure several times a step"):
        optimizer.step(lambda: torch.zeros(()))
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
