"""Optimizers of a Trainer on a changed model: the same groups by name, compressors' parameters apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import Trainer, TrainingArguments

from nnicompress.errors import UserError
from nnicompress.evaluators.optimizers import OptimizerSpec
from nnicompress.evaluators.transformers.evaluator import TransformersEvaluator
from nnicompress.events import Event, StepDone
from nnicompress.trace import trace
from tests.evaluators.transformers.cases import Rows, make_bert, make_evaluator, settings


@contextmanager
def optimizers_seen() -> Iterator[list[Optimizer]]:
    """The torch optimizers that make a step inside the block."""
    seen: list[Optimizer] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, args, kwargs: seen.append(optimizer))
    try:
        yield seen
    finally:
        handle.remove()


def groups(optimizer: Optimizer, model: nn.Module) -> list[tuple[set[str], float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [({names[id(p)] for p in group["params"]}, group["weight_decay"]) for group in optimizer.param_groups]


def shrunk(model: nn.Module) -> nn.Module:
    """Half of the feed-forward width removed, with new parameters."""
    layer = model.get_submodule("bert.encoder.layer.0")
    for name, rows in (("intermediate.dense", slice(0, 12)), ("output.dense", slice(None))):
        old = layer.get_submodule(name)
        weight = old.weight[rows] if name.startswith("inter") else old.weight[:, :12]
        new = nn.Linear(weight.shape[1], weight.shape[0])
        new.weight = nn.Parameter(weight.detach().clone())
        layer.get_submodule(name.partition(".")[0]).dense = new
    return model


def test_a_shrunk_model_has_the_same_groups_by_name() -> None:
    evaluator = make_evaluator()
    found = []
    for model in (make_bert(), shrunk(make_bert())):
        with evaluator.bound(model), optimizers_seen() as seen:
            evaluator.train(max_steps=1)
        (optimizer,) = seen
        found.append(groups(optimizer, model))
        assert isinstance(optimizer, AdamW)
    assert found[0] == found[1]
    (decayed, decay), (others, none) = found[0]
    assert decay == 0.1 and none == 0.0 and not decayed & others
    assert "bert.encoder.layer.0.intermediate.dense.weight" in decayed and "classifier.bias" in others
    assert decayed | others == {name for name, _ in make_bert().named_parameters()}


def test_a_shrunk_models_new_parameters_are_trained() -> None:
    model = shrunk(make_bert())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    evaluator = make_evaluator()
    with evaluator.bound(model):
        evaluator.train(max_steps=2)
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_compressors_parameters_get_a_group_of_their_own() -> None:
    model = make_bert()
    own = nn.Parameter(torch.ones(3))
    model.register_parameter("scores", own)  # where a Trainer would decay them
    outside = nn.Parameter(torch.ones(2))
    evaluator = make_evaluator()
    with evaluator.bound(model), optimizers_seen() as seen:
        evaluator.add_parameters([("scores", own), ("outside", outside)], lr=0.5)
        evaluator.add_penalty(lambda model: own.sum() + 2 * outside.sum())
        evaluator.train(max_steps=1)
    decayed, others, apart = seen[0].param_groups
    assert apart["params"] == [own, outside] and apart["weight_decay"] == 0.0
    assert own not in set(decayed["params"]) | set(others["params"])
    # AdamW's first step is the rate, against the gradient's sign.
    torch.testing.assert_close(own, torch.full((3,), 0.5), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outside, torch.full((2,), 0.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("described", ["traced", "spec", "in the Trainer", "class and arguments"])
def test_a_described_optimizer_is_built_for_each_model(described: str) -> None:
    traced = trace(SGD)(make_bert().named_parameters(), lr=0.3, momentum=0.5)
    given: dict[str, Any] = {
        "traced": {"optimizers": traced},
        "spec": {"optimizers": OptimizerSpec(trace(SGD)(lr=0.3, momentum=0.5), [{"params_re": "bias$", "lr": 0.1}])},
        "in the Trainer": {},
        "class and arguments": {"optimizer_cls_and_kwargs": (SGD, {"lr": 0.3, "momentum": 0.5})},
    }[described]
    evaluator = make_evaluator(InTheTrainer, **given) if described == "in the Trainer" else make_evaluator(**given)
    for model in (make_bert(), shrunk(make_bert())):
        with evaluator.bound(model), optimizers_seen() as seen:
            evaluator.train(max_steps=2)
        assert isinstance(seen[0], SGD) and seen[0].defaults["momentum"] == 0.5
        assert set.union(*(names for names, _ in groups(seen[0], model))) == {n for n, _ in model.named_parameters()}
        rates = [group["initial_lr"] for group in seen[0].param_groups]
        assert rates == ([0.3, 0.1] if described == "spec" else [0.3] * len(rates))


class InTheTrainer(Trainer):
    """Builds its optimizer itself, each time it is asked."""

    def create_optimizer(self, model: Any = None) -> Optimizer:
        self.optimizer = SGD(self.model.parameters(), lr=0.3, momentum=0.5)
        return self.optimizer


def test_a_pair_traced_with_the_trainer_is_used() -> None:
    events: list[Event] = []
    traced = trace(Trainer)(
        args=TrainingArguments(**settings()),
        train_dataset=Rows(),
        optimizers=(trace(SGD)(make_bert().named_parameters(), lr=0.3), trace(OneCycleLR)(max_lr=1.0)),
    )
    evaluator = TransformersEvaluator(traced, listener=events.append)
    with evaluator.bound(make_bert()), optimizers_seen() as seen:
        evaluator.train(max_steps=4)
    assert isinstance(seen[0], SGD)
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.3)
    schedule = OneCycleLR(optimizer, max_lr=1.0, total_steps=4)
    expected = []
    for _ in range(4):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [event.learning_rate for event in events if isinstance(event, StepDone)] == pytest.approx(expected)


def test_a_parameter_that_is_left_out_is_told() -> None:
    class Stale(Trainer):
        def create_optimizer(self, model: Any = None) -> Optimizer:
            self.optimizer = SGD(self.model.classifier.parameters(), lr=0.1)
            return self.optimizer

    evaluator = make_evaluator(Stale)
    model = make_bert()
    with evaluator.bound(model), pytest.raises(UserError, match="Trainer's SGD lacks .* 'bert.embeddings.word_emb"):
        evaluator.train(max_steps=1)
    model.bert.requires_grad_(False)
    with evaluator.bound(model):
        assert evaluator.train(max_steps=1).steps == 1
