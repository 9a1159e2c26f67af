"""Parameter groups are kept by name: rebuilt for a changed model, complete, and refused by name."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

from nnicompress.errors import UserError
from nnicompress.evaluators.optimizers import OptimizerSpec
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.trace import trace
from tests.evaluators.cases import make_model, training_step, user_loop


def narrowed(model: nn.Module, keep: list[int]) -> nn.Module:
    """A copy of `make_model()` whose hidden layer has only the units `keep`."""
    compact = copy.deepcopy(model)
    compact[0] = nn.Linear(5, len(keep))
    compact[0].weight.data, compact[0].bias.data = model[0].weight.data[keep], model[0].bias.data[keep]
    compact[1] = nn.BatchNorm1d(len(keep))
    compact[4] = nn.Linear(len(keep), 3)
    compact[4].weight.data = model[4].weight.data[:, keep]
    return compact


def groups_of(evaluator: TorchEvaluator, model: nn.Module) -> list[tuple[list[str], float, float]]:
    """(names, lr, weight_decay) of each group of the optimizer that the loop gets."""
    found = []
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def hook(event: Any) -> None:
        found.extend(
            ([names[id(p)] for p in group["params"]], group["lr"], group["weight_decay"])
            for group in optimizer_seen[-1].param_groups
        )

    optimizer_seen: list[Optimizer] = []

    def loop(model: Any, optimizer: Any, *rest: Any) -> None:
        optimizer_seen.append(optimizer)
        user_loop(model, optimizer, *rest)

    evaluator.training_func = loop
    with evaluator.bound(model):
        evaluator.after_step(hook)
        evaluator.train(max_steps=1)
    return found


def test_groups_survive_narrowing_by_name() -> None:
    model = make_model()
    groups = [
        {"params": [model[0].weight, model[4].weight], "weight_decay": 0.1},
        {"params": model[1].parameters(), "lr": 0.5},
        {"params": [model[4].bias, model[0].bias]},
    ]
    evaluator = TorchEvaluator(user_loop, trace(SGD)(groups, lr=0.1), training_step)
    expected = [
        (["0.weight", "4.weight"], 0.1, 0.1),
        (["1.weight", "1.bias"], 0.5, 0),
        (["4.bias", "0.bias"], 0.1, 0),
    ]
    assert groups_of(evaluator, model) == expected
    compact = narrowed(model, [0, 3, 4])
    before = compact[0].weight.clone()
    assert groups_of(evaluator, compact) == expected
    assert not torch.equal(compact[0].weight, before)  # the narrow layer itself has been trained


def test_a_recipes_groups_are_chosen_by_regular_expression() -> None:
    model = make_model()
    spec = OptimizerSpec(
        trace(AdamW)(lr=0.01, weight_decay=0.3),
        [{"params_re": r"^1\.", "lr": 0.5}, {"params_re": r"^[04]\.bias$", "weight_decay": 0.0}],
    )
    expected = [
        (["0.weight", "4.weight"], 0.01, 0.3),
        (["1.weight", "1.bias"], 0.5, 0.3),
        (["0.bias", "4.bias"], 0.01, 0.0),
    ]
    evaluator = TorchEvaluator(user_loop, spec, training_step)
    assert groups_of(evaluator, model) == expected
    assert groups_of(evaluator, narrowed(model, [1, 2])) == expected
    everything = TorchEvaluator(user_loop, OptimizerSpec(trace(SGD)(lr=0.1)), training_step)
    assert groups_of(everything, model)[0][0] == [name for name, _ in model.named_parameters()]


def test_named_parameters_serve_copies_of_the_model() -> None:
    model = make_model()
    evaluator = TorchEvaluator(user_loop, trace(SGD)(model.named_parameters(), lr=0.1), training_step)
    clone = copy.deepcopy(model)
    assert groups_of(evaluator, clone)[0][0] == [name for name, _ in model.named_parameters()]
    by_identity = TorchEvaluator(user_loop, trace(SGD)(model.parameters(), lr=0.1), training_step)
    with pytest.raises(UserError, match=r"shape \(12, 5\) is not in the model that is bound first"):
        groups_of(by_identity, clone)


def test_the_first_model_is_not_kept_alive() -> None:
    import gc
    import weakref

    model = make_model()
    evaluator = TorchEvaluator(user_loop, trace(SGD)(model.parameters(), lr=0.1), training_step)
    with evaluator.bound(model):
        evaluator.train(max_steps=1)
    compact, gone = narrowed(model, [1, 2]), weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert gone() is None
    with evaluator.bound(compact):
        evaluator.train(max_steps=1)


def test_a_parameter_in_no_group_is_named_and_frozen_ones_are_excused() -> None:
    model = make_model()
    evaluator = TorchEvaluator(user_loop, trace(SGD)([*model[0].parameters(), model[4].bias], lr=0.1), training_step)
    with pytest.raises(UserError, match="3 trainable parameters are in no optimizer: '1.weight', '1.bias', '4.weight'"):
        groups_of(evaluator, model)
    model[1].requires_grad_(False)
    model[4].weight.requires_grad_(False)
    assert groups_of(evaluator, model)[0][0] == ["0.weight", "0.bias", "4.bias"]


def test_a_parameter_added_after_binding_is_found() -> None:
    model = make_model()
    evaluator = TorchEvaluator(user_loop, trace(SGD)(model.parameters(), lr=0.1), training_step)
    with evaluator.bound(model):
        model[0].scale = nn.Parameter(torch.ones(1))
        with pytest.raises(UserError, match=r"1 trainable parameter is in no optimizer: '0\.scale'"):
            evaluator.train(max_steps=1)
        evaluator.add_parameters([("0.scale", model[0].scale)])
        evaluator.train(max_steps=1)


def test_a_parameter_in_two_groups_is_named() -> None:
    model = make_model()
    twice = [
        trace(SGD)(model.parameters(), lr=0.1),
        trace(AdamW)([{"params": [model[4].bias]}, {"params": [model[0].bias]}], lr=0.1),
    ]
    evaluator = TorchEvaluator(user_loop, twice, training_step)
    message = r"'4\.bias' is in SGD \(optimizer 0\) and in group 0 of AdamW \(optimizer 1\)"
    with pytest.raises(UserError, match=message), evaluator.bound(model):
        pass


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [{"params_re": "head"}],
            "'head' matches no parameter; the model has '0.weight', .* and 3 more",
        ),
        ([{"params_re": "4.weigth"}], "'4.weigth' matches no parameter; did you mean '4.weight'"),
        ([{"params_re": "bias"}, {"params_re": "^4"}], r"'4\.bias' matches params_re 'bias' and '\^4'"),
        ([{"params_re": "("}], r"param_groups\[0\]: params_re '\(' is no regular expression"),
        ([{"lr": 0.1}], r"param_groups\[0\]: params_re is required"),
        ([{"params_re": "bias", "learning_rate": 1}], r"param_groups\[0\]: SGD takes no 'learning_rate'"),
    ],
)
def test_a_wrong_group_of_a_recipe_is_named(groups: list[dict[str, Any]], message: str) -> None:
    evaluator = TorchEvaluator(user_loop, OptimizerSpec(trace(SGD)(lr=0.1), groups), training_step)
    with pytest.raises(UserError, match=message), evaluator.bound(make_model()):
        pass


class Sam(SGD):
    def first_step(self) -> None: ...

    def second_step(self) -> None: ...


class NeedsClosure(SGD):
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return closure()


@pytest.mark.parametrize(
    ("optimizers", "message"),
    [
        (SGD([torch.zeros(1)], lr=0.1), "SGD is already built, tied to the parameters of one model; record how"),
        (SGD, "doesn't say how to build an optimizer; write optimizers=nnicompress.trace"),
        (trace(nn.Linear)(2, 3), "Linear is no torch.optim.Optimizer class"),
        (trace(LBFGS)([torch.zeros(1)]), "LBFGS calls a closure several times a step"),
        (trace(NeedsClosure)([torch.zeros(1)]), "NeedsClosure calls a closure several times a step"),
        (trace(Sam)([torch.zeros(1)]), "Sam moves the weights twice a step"),
    ],
)
def test_optimizers_that_cannot_work_are_refused(optimizers: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TorchEvaluator(user_loop, optimizers, training_step)


def test_built_schedulers_and_strangers_are_refused() -> None:
    model = make_model()
    optimizer = trace(SGD)(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match="StepLR is already built, tied to one optimizer"):
        TorchEvaluator(user_loop, optimizer, training_step, StepLR(optimizer.build(), 3))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="StepLR was traced with an optimizer that is not in `optimizers`"):
        other = trace(SGD)(model.parameters(), lr=0.2)
        TorchEvaluator(user_loop, optimizer, training_step, trace(StepLR)(other, step_size=3))
    several = [trace(SGD)(model[0].parameters(), lr=0.1), trace(SGD)(model[1].parameters(), lr=0.1)]
    with pytest.raises(UserError, match="1 for 2 optimizers; say whose rate StepLR sets"):
        TorchEvaluator(user_loop, several, training_step, trace(StepLR)(step_size=3))


@pytest.fixture
def sharded() -> Iterator[nn.Module]:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Linear(4, 2)
        model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
        yield model
    finally:
        distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_sharded_parameters_are_refused(sharded: nn.Module) -> None:
    evaluator = TorchEvaluator(user_loop, trace(SGD)(sharded.parameters(), lr=0.1), training_step)
    with pytest.raises(UserError, match=r"'weight' is sharded \(DTensor\)"), evaluator.bound(sharded):
        pass
