"""Training through the evaluator against the same loop written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from nnicompress.errors import UserError
from nnicompress.evaluators.contract import Evaluator
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.events import EpochDone, Event, Note, StepDone, TrainingFinished, TrainingStarted
from nnicompress.trace import trace
from tests.evaluators.cases import (
    NUM_BATCHES,
    assert_equal_weights,
    dict_step,
    make_evaluator,
    make_loader,
    make_model,
    training_step,
    tuple_step,
    user_loop,
)


def by_hand(num_steps: int) -> tuple[nn.Module, list[float], list[float]]:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=num_steps)
    losses, rates = [], []
    model.train()
    torch.manual_seed(1)
    for step in range(num_steps):
        if step % NUM_BATCHES == 0:
            batches = iter(make_loader(step // NUM_BATCHES))
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return model, losses, rates


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_twenty_steps_are_bit_identical_to_a_loop_by_hand(with_optimizer: bool) -> None:
    expected, losses, rates = by_hand(20)
    model, events = make_model(), list[Event]()
    optimizer = trace(SGD)(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    scheduler = trace(OneCycleLR)(*([optimizer] if with_optimizer else []), max_lr=0.1)
    evaluator = TorchEvaluator(user_loop, optimizer, training_step, scheduler, listener=events.append)
    torch.manual_seed(1)
    with evaluator.bound(model):
        result = evaluator.train(max_steps=20)
    assert_equal_weights(model, expected)
    assert result.steps == 20 and result.losses == tuple(losses) and result.epochs is None
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == list(range(1, 21))
    assert [event.learning_rate for event in steps] == rates and [event.loss for event in steps] == losses
    assert events[0] == TrainingStarted(20) and events[-1] == TrainingFinished(20)


def test_the_torch_evaluator_is_an_evaluator() -> None:
    evaluator: Evaluator = TorchEvaluator()
    with evaluator.bound(make_model()):
        assert isinstance(evaluator, Evaluator)


@pytest.mark.parametrize("step", [tuple_step, dict_step])
def test_the_loop_gets_what_its_own_training_step_returned(step: Callable[..., Any]) -> None:
    def loop(model: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for batch in list(make_loader(0))[:max_steps]:
            output = training_step(batch, model)
            loss = output["loss"] if isinstance(output, dict) else output[0]
            outputs = output["outputs"] if isinstance(output, dict) else output[1]
            assert outputs.shape == (8, 3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    results = []
    for loop_used, step_used in ((loop, step), (user_loop, training_step)):
        model = make_model()
        evaluator = make_evaluator(model, loop_used, step_used)
        torch.manual_seed(1)
        with evaluator.bound(model):
            results.append((evaluator.train(max_steps=5).losses, model))
    assert results[0][0] == results[1][0]
    assert_equal_weights(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"objective": 1.0}, "mapping without the key 'loss'; it has \\['objective'\\]"),
        (3.0, "training_step returned float"),
        ((), "must return a loss tensor"),
        (torch.zeros(4), "loss of shape \\(4,\\); it must be one number"),
    ],
)
def test_a_training_step_that_returns_no_loss_is_told(returned: Any, message: str) -> None:
    model = make_model()
    evaluator = make_evaluator(model, step=lambda batch, model: returned)
    with evaluator.bound(model), pytest.raises(UserError, match=message):
        evaluator.train(max_steps=2)


def test_several_optimizers_and_schedulers_come_as_lists() -> None:
    def loop(model: Any, optimizers: Any, training_step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
        assert [type(o) for o in optimizers] == [SGD, AdamW] and [type(s) for s in schedulers] == [StepLR, StepLR]
        assert schedulers[0].optimizer is optimizers[1] and schedulers[1].optimizer is optimizers[0]
        for batch in list(make_loader(0))[:max_steps]:
            for optimizer in optimizers:
                optimizer.zero_grad()
            training_step(batch, model).backward()
            for optimizer in optimizers:
                optimizer.step()
            for scheduler in schedulers:
                scheduler.step()

    model, expected = make_model(), make_model()
    first, second = trace(SGD)(model[:3].parameters(), lr=0.1), trace(AdamW)(model[4].parameters(), lr=0.01)
    schedulers = [trace(StepLR)(second, step_size=2), trace(StepLR)(optimizer=first, step_size=3)]
    evaluator = TorchEvaluator(loop, [first, second], training_step, schedulers)
    before, after = [], []
    torch.manual_seed(1)
    with evaluator.bound(model):
        evaluator.before_step(lambda event: before.append(event.step))
        evaluator.after_step(lambda event: after.append(event.step))
        assert evaluator.train(max_steps=5).steps == 5
    # Steps are the first optimizer's; each optimizer's step may undo a mask.
    assert before == [1, 2, 3, 4, 5] and after == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]

    optimizers = [SGD(expected[:3].parameters(), lr=0.1), AdamW(expected[4].parameters(), lr=0.01)]
    torch.manual_seed(1)
    loop(
        expected,
        optimizers,
        training_step,
        [StepLR(optimizers[1], step_size=2), StepLR(optimizers[0], step_size=3)],
        5,
        None,
    )
    assert_equal_weights(model, expected)


def test_hooks_see_gradients_before_and_new_weights_after() -> None:
    model = make_model()
    evaluator = make_evaluator(model, optimizers=trace(SGD)(model.parameters(), lr=0.5))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before(event: Any) -> None:
        assert event.model is model and not torch.is_grad_enabled()
        weight = model[0].weight
        seen.append((weight.clone(), weight - 0.5 * weight.grad))

    def after(event: Any) -> None:
        old, new = seen[event.step - 1]
        assert torch.allclose(model[0].weight, new) and not torch.equal(model[0].weight, old)

    with evaluator.bound(model):
        evaluator.before_step(before)
        handle = evaluator.after_step(after)
        evaluator.train(max_steps=3)
        handle.remove()
        handle.remove()
        evaluator.train(max_steps=2)
    assert len(seen) == 5


def test_a_closure_is_refused() -> None:
    def loop(model: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for batch in make_loader(0):
            optimizer.step(lambda: training_step(batch, model))  # noqa: B023

    model = make_model()
    evaluator = make_evaluator(model, loop)
    with evaluator.bound(model), pytest.raises(UserError, match="SGD.step with a closure"):
        evaluator.train(max_steps=2)


def loop_of_length(steps: int, calls_ours: bool = True) -> Callable[..., None]:
    """A loop that makes `steps` steps, whatever it is asked."""

    def loop(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        str(max_epochs)
        batch = next(iter(make_loader(0)))
        for _ in range(steps):
            optimizer.zero_grad()
            (step if calls_ours else training_step)(batch, model).backward()
            optimizer.step()

    return loop


def test_a_loop_that_ignores_max_steps_is_told_by_how_much() -> None:
    model = make_model()
    evaluator = make_evaluator(model, loop_of_length(12))
    with (
        evaluator.bound(model),
        pytest.raises(UserError, match="ran 12 optimizer steps; max_steps=5 asked for 5: 7 too many"),
    ):
        evaluator.train(max_steps=5)


def test_a_loop_without_end_is_stopped() -> None:
    model = make_model()
    evaluator = make_evaluator(model, loop_of_length(10**6))
    with evaluator.bound(model), pytest.raises(UserError, match="15 too many and still going when it was stopped"):
        evaluator.train(max_steps=5)


def test_fewer_steps_are_a_warning_and_none_is_an_error() -> None:
    model, notes = make_model(), list[Event]()
    evaluator = make_evaluator(model, loop_of_length(3), listener=notes.append)
    with evaluator.bound(model):
        assert evaluator.train(max_steps=5).steps == 3
    text = "training_func ran 3 optimizer steps; max_steps=5 asked for 5: 2 too few"
    assert Note(text, warning=True) in notes
    silent = make_evaluator(model, loop_of_length(3))
    with silent.bound(model), pytest.warns(UserWarning, match="2 too few"):
        silent.train(max_steps=5)
    nothing = make_evaluator(model, loop_of_length(0))
    with nothing.bound(model), pytest.raises(UserError, match="made no optimizer step"):
        nothing.train(max_steps=5)


def test_a_loop_that_ignores_max_epochs_is_told() -> None:
    model = make_model()
    evaluator = make_evaluator(model, loop_of_length(12))
    with evaluator.bound(model):
        evaluator.train(max_epochs=2)
        evaluator.train(max_epochs=2)
        with pytest.raises(UserError, match="12 optimizer steps for max_epochs=2, and 12 for max_epochs=3"):
            evaluator.train(max_epochs=3)

    def loop(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        raise AssertionError("it must be told before it starts")

    never_reads = make_evaluator(model, loop)
    with never_reads.bound(model), pytest.raises(UserError, match="'loop' never reads its argument max_epochs.*=4"):
        never_reads.train(max_epochs=4)


def test_epochs_are_exact_where_the_loop_tells_their_length() -> None:
    model = make_model()

    def loop(*args: Any) -> None:
        loop_of_length(13)(*args)

    loop.steps_per_epoch = NUM_BATCHES  # type: ignore[attr-defined]
    evaluator = make_evaluator(model, loop)
    with (
        evaluator.bound(model),
        pytest.raises(UserError, match=r"13 optimizer steps; max_epochs=2 asked for 12 \(6 an epoch\): 1 too many"),
    ):
        evaluator.train(max_epochs=2)


def test_a_user_loop_that_keeps_to_its_epochs_is_never_told_otherwise() -> None:
    model = make_model()
    evaluator = make_evaluator(model)
    with evaluator.bound(model):
        assert [evaluator.train(max_epochs=epochs).steps for epochs in (1, 2, 1, 3)] == [6, 12, 6, 18]


def test_a_loop_that_calls_its_own_training_step_is_told() -> None:
    model = make_model()
    evaluator = make_evaluator(model, loop_of_length(3, calls_ours=False))
    with evaluator.bound(model), pytest.raises(UserError, match="without calling the training_step that it was given"):
        evaluator.train(max_steps=3)


def test_training_modes_and_gradients_are_as_before() -> None:
    model = make_model()
    model[1].eval()
    evaluator = make_evaluator(model)
    with evaluator.bound(model):
        evaluator.train(max_steps=2)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_is_patched_afterwards() -> None:
    SGD([torch.zeros(1)], lr=0.1)  # torch itself wraps SGD.step when the first one is built
    model = make_model()

    def state() -> Any:
        modules = [
            (type(m), sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ]
        tensors = [(n, id(p), type(p), p._backward_hooks, sorted(vars(p))) for n, p in model.named_parameters()]
        functions = [(f.__code__, dict(vars(f))) for f in (user_loop, training_step)]
        return modules, tensors, functions, dict(vars(SGD)), dict(vars(OneCycleLR)), dict(vars(type(model[0])))

    before = state()
    optimizer = trace(SGD)(model.parameters(), lr=0.1)
    scheduler = trace(OneCycleLR)(optimizer, max_lr=0.1)
    evaluator = TorchEvaluator(user_loop, optimizer, training_step, scheduler, evaluating_func=lambda model: 0.5)
    with evaluator.bound(model):
        evaluator.before_step(lambda event: None)
        evaluator.add_penalty(lambda model: model[0].weight.abs().sum())
        evaluator.add_parameters([("scale", nn.Parameter(torch.ones(1)))])
        evaluator.example_inputs()
        evaluator.iterate(2)
        evaluator.train(max_steps=2)
        evaluator.evaluate()
    assert state() == before
    with pytest.raises(UserError, match="no model is bound"):
        _ = evaluator.model


def test_an_optimizer_that_the_loop_keeps_has_no_hooks_left() -> None:
    kept: list[Any] = []

    def loop(model: Any, optimizer: Any, *rest: Any) -> None:
        kept.append(optimizer)
        user_loop(model, optimizer, *rest)

    model = make_model()
    evaluator = make_evaluator(model, loop)
    with evaluator.bound(model):
        evaluator.iterate(1)
        evaluator.train(max_steps=1)
    for optimizer in kept:
        assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_what_is_registered_while_bound_is_forgotten_at_the_end() -> None:
    model, counts = make_model(), [0, 0]
    evaluator = make_evaluator(model)

    def count(index: int) -> Callable[[Any], None]:
        def hook(event: Any) -> None:
            counts[index] += 1

        return hook

    evaluator.before_step(count(0))
    with evaluator.bound(model):
        evaluator.before_step(count(1))
        evaluator.train(max_steps=1)
    with evaluator.bound(model):
        evaluator.train(max_steps=1)
    assert counts == [2, 1]


def test_a_failure_inside_the_loop_leaves_nothing_behind() -> None:
    model = make_model()

    def fails(event: Any) -> None:
        raise RuntimeError("mine")

    evaluator = make_evaluator(model)
    with pytest.raises(RuntimeError, match="mine"), evaluator.bound(model):
        evaluator.after_step(fails)
        evaluator.train(max_steps=2)
    with evaluator.bound(model):
        assert evaluator.train(max_steps=2).steps == 2


def test_only_one_model_is_bound_at_a_time() -> None:
    model = make_model()
    evaluator = make_evaluator(model)
    with evaluator.bound(model), pytest.raises(UserError, match="already bound"), evaluator.bound(model):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"training_func": lambda model, optimizers: None}, "training_func '<lambda>' must take \\(model, optimizers"),
        ({"training_func": "train"}, "training_func is str"),
        ({"training_step": lambda batch: None}, "training_step '<lambda>' must take \\(batch, model\\)"),
        ({"evaluating_func": lambda: 1.0}, "evaluating_func '<lambda>' must take \\(model\\)"),
        ({"dummy_input": 3}, "dummy_input is int"),
        ({"dummy_input": {"mask": None}}, "dummy_input holds no tensor"),
        ({"lr_schedulers": trace(StepLR)(step_size=1)}, "lr_schedulers are given without optimizers"),
    ],
)
def test_wrong_arguments_are_named_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TorchEvaluator(**arguments)


def test_asking_for_no_training_is_an_error() -> None:
    model = make_model()
    with make_evaluator(model).bound(model):
        pass
    evaluator = make_evaluator(model)
    with evaluator.bound(model):
        with pytest.raises(UserError, match="needs max_epochs or max_steps"):
            evaluator.train()
        with pytest.raises(UserError, match="max_steps=0 asks for no training"):
            evaluator.train(max_steps=0)
        with pytest.raises(UserError, match="iterate\\(0\\)"):
            evaluator.iterate(0)


def test_what_is_missing_is_named_with_who_needs_it() -> None:
    evaluator = TorchEvaluator(evaluating_func=lambda model: 1.0, training_step=training_step)
    assert evaluator.capabilities == {"evaluate"}
    message = (
        "TaylorPruner needs training_func and optimizers: it accumulates gradients over 20 batches; "
        "give TorchEvaluator(training_func=..., optimizers=...)"
    )
    with pytest.raises(UserError) as raised:
        evaluator.require("iterate", by="TaylorPruner", why="it accumulates gradients over 20 batches")
    assert str(raised.value) == message
    evaluator.require("evaluate", by="TaylorPruner", why="it measures")
    model = make_model()
    assert make_evaluator(model).capabilities == {"train", "iterate", "example_inputs"}
    assert TorchEvaluator(dummy_input=torch.zeros(1, 5)).capabilities == {"example_inputs"}


def test_events_of_the_shipped_loop_come_in_order() -> None:
    model, events = make_model(), list[Event]()
    evaluator = make_evaluator(
        model, TrainingLoop(make_loader), evaluating_func=lambda model: 0.25, listener=events.append
    )
    with evaluator.bound(model):
        result = evaluator.train(max_epochs=2)
    kinds = [type(event) for event in events]
    assert kinds == [TrainingStarted, *2 * [*NUM_BATCHES * [StepDone], EpochDone], TrainingFinished]
    assert result.metrics == ({"default": 0.25}, {"default": 0.25}) and result.epochs == 2.0
    assert [e.epoch for e in events if isinstance(e, EpochDone)] == [1, 2]
    assert [e.epoch for e in events if isinstance(e, StepDone)][NUM_BATCHES - 1] == 1.0
