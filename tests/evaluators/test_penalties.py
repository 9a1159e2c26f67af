"""A penalty's gradient arrives once an optimizer step, before clipping, however the loop treats its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from nnicompress.errors import UserError
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.trace import trace
from tests.evaluators.cases import (
    assert_equal_weights,
    dict_step,
    make_evaluator,
    make_loader,
    make_model,
    training_step,
    tuple_step,
    user_loop,
)


def penalty(model: nn.Module) -> torch.Tensor:
    return 0.01 * sum(parameter.abs().sum() for parameter in model.parameters())


def accumulating(scale: float, num: int = 3, scaler: torch.amp.GradScaler | None = None) -> Callable[..., None]:
    """A user's loop that accumulates over `num` batches, multiplying each loss by `scale`."""

    def loop(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        model.train()
        batches = list(make_loader(0))
        for start in range(0, num * max_steps, num):
            optimizer.zero_grad()
            for batch in batches[start : start + num]:
                output = step(batch, model)
                loss = output if isinstance(output, torch.Tensor) else output["loss" if isinstance(output, dict) else 0]
                loss = loss * scale
                (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()

    return loop


def by_hand(scale: float, num: int, steps: int) -> nn.Module:
    """The same, with the penalty's gradient added once before each step."""
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    model.train()
    batches = list(make_loader(0))
    for start in range(0, num * steps, num):
        optimizer.zero_grad()
        for batch in batches[start : start + num]:
            (training_step(batch, model) * scale).backward()
        penalty(model).backward()
        optimizer.step()
    return model


def trained(loop: Any, step: Any = training_step, steps: int = 2) -> nn.Module:
    model = make_model()
    evaluator = make_evaluator(model, loop, step, optimizers=trace(SGD)(model.parameters(), lr=0.1))
    torch.manual_seed(1)
    with evaluator.bound(model):
        evaluator.add_penalty(penalty)
        evaluator.train(max_steps=steps)
    return model


def assert_close(found: nn.Module, expected: nn.Module) -> None:
    for (name, tensor), other in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("step", [training_step, tuple_step, dict_step])
@pytest.mark.parametrize("scale", [1.0, 1 / 3])
def test_once_with_accumulation_whether_or_not_the_loss_is_divided(scale: float, step: Any) -> None:
    assert_close(trained(accumulating(scale), step), by_hand(scale, 3, 2))


def test_without_accumulation() -> None:
    assert_close(trained(user_loop, steps=5), by_hand(1.0, 1, 5))


@pytest.mark.parametrize(("num", "scale"), [(1, 1.0), (3, 1 / 3)])
def test_a_scaled_loss_keeps_the_penaltys_weight(num: int, scale: float) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    assert_close(trained(accumulating(scale, num, scaler)), by_hand(scale, num, 2))


def test_in_the_shipped_loop_also_for_the_last_smaller_window() -> None:
    # 6 batches by 4: one window of 4 and one of 2, averaged over what they have.
    model = trained(TrainingLoop(make_loader, accumulate=4))
    expected = make_model()
    optimizer = SGD(expected.parameters(), lr=0.1)
    torch.manual_seed(1)
    expected.train()
    batches = list(make_loader(0))
    for window in (batches[:4], batches[4:]):
        optimizer.zero_grad()
        for batch in window:
            (training_step(batch, expected) / len(window)).backward()
        penalty(expected).backward()
        optimizer.step()
    assert_close(model, expected)


def test_it_is_there_before_clipping() -> None:
    def huge(model: nn.Module) -> torch.Tensor:
        return 1000.0 * model[0].weight.sum()

    model, norms = make_model(), []
    evaluator = make_evaluator(model, TrainingLoop(make_loader, clip_norm=0.5))

    def norm(event: Any) -> None:
        norms.append(torch.stack([p.grad.norm() for p in event.model.parameters()]).norm().item())

    with evaluator.bound(model):
        evaluator.add_penalty(huge)
        evaluator.before_step(norm)
        evaluator.train(max_steps=2)
    assert norms == pytest.approx([0.5, 0.5], rel=1e-4)
    assert model[0].weight.grad is None


def test_the_recorded_loss_is_the_users_and_removal_ends_it() -> None:
    with_penalty, without = make_model(), make_model()
    losses = []
    for model, adds in ((with_penalty, True), (without, False)):
        evaluator = make_evaluator(model)
        torch.manual_seed(1)
        with evaluator.bound(model):
            if adds:
                handle = evaluator.add_penalty(lambda model: 100.0 * model[0].weight.sum())
                handle.remove()
            evaluator.add_penalty(lambda model: torch.zeros(()))  # nothing to differentiate
            losses.append(evaluator.train(max_steps=4).losses)
    assert losses[0] == losses[1]
    assert_equal_weights(with_penalty, without)
    model = make_model()
    evaluator = make_evaluator(model)
    torch.manual_seed(1)
    with evaluator.bound(model):
        evaluator.add_penalty(lambda model: 100.0 * model[4].bias.sum())
        assert evaluator.train(max_steps=1).losses == losses[0][:1]


def test_the_dry_loss_of_a_validation_inside_the_loop_does_not_use_it_up() -> None:
    def loop(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        model.train()
        for batch in list(make_loader(0))[:max_steps]:
            model.eval()
            with torch.no_grad():
                step(batch, model)
            model.train()
            optimizer.zero_grad()
            step(batch, model).backward()
            optimizer.step()

    assert_close(trained(loop, steps=4), by_hand(1.0, 1, 4))


def test_optimizers_that_step_in_turn_are_refused() -> None:
    def loop(model: Any, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
        for batch in list(make_loader(0))[:max_steps]:
            for optimizer in optimizers:
                optimizer.zero_grad()
                step(batch, model).backward()
                optimizer.step()

    model = make_model()
    optimizers = [trace(SGD)(model[:3].parameters(), lr=0.1), trace(SGD)(model[4].parameters(), lr=0.1)]
    evaluator = TorchEvaluator(loop, optimizers, training_step)
    with evaluator.bound(model):
        evaluator.train(max_steps=3)
        evaluator.add_penalty(penalty)
        with pytest.raises(UserError, match="steps its optimizers in turn"):
            evaluator.train(max_steps=3)


def test_a_compressors_own_parameters_learn_without_decay() -> None:
    model = make_model()
    scale, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    evaluator = make_evaluator(model, optimizers=trace(SGD)(model.parameters(), lr=0.1, weight_decay=0.5))
    with evaluator.bound(model):
        evaluator.add_parameters([("scale", scale)], lr=0.5)
        evaluator.add_parameters([("other", other)], weight_decay=0.1)
        handle = evaluator.add_penalty(lambda model: scale.sum())
        evaluator.train(max_steps=1)
        assert scale.tolist() == [0.5, 0.5, 0.5] and other.tolist() == [1.0, 1.0]  # no gradient, no step
        handle.remove()
        evaluator.add_penalty(lambda model: other.sum() + 0 * scale.sum())
        evaluator.train(max_steps=1)
        assert scale.tolist() == [0.5, 0.5, 0.5]
        assert other.tolist() == pytest.approx([0.89, 0.89])  # 1 - 0.1 * (1 + 0.1 * 1)
        assert scale.grad is None


def test_parameters_are_only_given_to_an_optimizer_that_knows_their_settings() -> None:
    with pytest.raises(UserError, match=r"add_parameters\(\) needs training_func and optimizers"):
        TorchEvaluator().add_parameters([("scale", nn.Parameter(torch.ones(1)))])
    model = make_model()
    evaluator = make_evaluator(model)
    with evaluator.bound(model):
        with pytest.raises(UserError, match="no parameters"):
            evaluator.add_parameters([])
        evaluator.add_parameters([("scale", nn.Parameter(torch.ones(1)))], momentun=0.1)
        with pytest.raises(UserError, match="SGD has no setting 'momentun'.*did you mean 'momentum'"):
            evaluator.train(max_steps=1)
