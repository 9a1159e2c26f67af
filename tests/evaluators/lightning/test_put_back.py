"""Afterwards nothing of Lightning or of ours is on the user's objects."""

from __future__ import annotations

import gc
import signal
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, StochasticWeightAveraging
from torch.optim import SGD

from nnicompress.events import Event, StepDone
from tests.evaluators.lightning.cases import QUIET, Net, make_evaluator, make_trainer, ordered
from tests.evaluators.lightning.test_train import TwoOptimizers


def attributes(module: Any) -> Any:
    return [
        (
            type(part),
            {n: v for n, v in vars(part).items() if not n.startswith("_forward")},
            len(part._forward_pre_hooks),
        )
        for part in module.modules()
    ]


@pytest.mark.parametrize("net", [Net, TwoOptimizers])
def test_the_module_and_its_class_are_as_before(net: Any) -> None:
    model = net()
    SGD([torch.zeros(1)], lr=0.1)  # torch itself wraps SGD.step when the first one is built
    before = attributes(model), dict(vars(net)), dict(vars(Trainer)), dict(vars(SGD))
    tensors = [(n, id(p), p.requires_grad, p.grad, p._backward_hooks) for n, p in model.named_parameters()]
    evaluator = make_evaluator()
    with evaluator.bound(model):
        evaluator.before_step(lambda event: None)
        evaluator.add_penalty(lambda model: model.net[0].weight.abs().sum())
        evaluator.iterate(2)
        evaluator.train(max_steps=4)
        evaluator.evaluate()
        evaluator.state_dict()
    assert (attributes(model), dict(vars(net)), dict(vars(Trainer)), dict(vars(SGD))) == before
    assert [(n, id(p), p.requires_grad, p.grad, p._backward_hooks) for n, p in model.named_parameters()] == tensors
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        _ = model.trainer


def test_no_trainer_is_kept_alive() -> None:
    model, evaluator = Net(), make_evaluator()
    gc.collect()
    before = sum(type(one) is Trainer for one in gc.get_objects())
    with evaluator.bound(model):
        evaluator.iterate(1)
        evaluator.train(max_steps=2)
        evaluator.evaluate()
    gc.collect()
    assert sum(type(one) is Trainer for one in gc.get_objects()) == before


def test_a_built_trainer_and_its_callbacks_are_as_before_and_each_training_is_fresh() -> None:
    stop, swa = EarlyStopping("val_acc", patience=1, mode="min"), StochasticWeightAveraging(0.05, swa_epoch_start=0.5)
    trainer = Trainer(**QUIET, max_epochs=6, callbacks=[stop, swa])
    model = Net()

    def state() -> Any:
        parts = [trainer, trainer.strategy, trainer._logger_connector, trainer._checkpoint_connector, stop, swa]
        return [
            {name: value for name, value in vars(part).items() if not isinstance(value, torch.Tensor)} for part in parts
        ]

    before, fit_loop = state(), trainer.fit_loop
    evaluator = make_evaluator(trainer)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = []
    with evaluator.bound(model):
        for _ in range(2):
            model.load_state_dict(weights)
            torch.manual_seed(1)
            evaluator.iterate(2)
            losses.append(evaluator.train().losses)
            evaluator.evaluate()
    assert losses[0] == losses[1] and len(losses[0]) >= 6
    assert state() == before and trainer.fit_loop is fit_loop and stop.wait_count == 0
    assert trainer.max_epochs == 6 and trainer.global_step == 0


def test_datamodules_are_as_before() -> None:
    class Module(LightningDataModule):
        def train_dataloader(self) -> Any:
            return ordered()

        def val_dataloader(self) -> Any:
            return ordered(40)

        test_dataloader = val_dataloader

    data, model = Module(), Net()
    before = dict(vars(data))
    evaluator = make_evaluator(data=data)
    with evaluator.bound(model):
        evaluator.iterate(1)
        evaluator.train(max_steps=2)
        evaluator.evaluate()
        evaluator.evaluate("test")
    assert vars(data) == before


def test_a_failure_leaves_nothing_behind() -> None:
    model, evaluator = Net(), make_evaluator()
    before = attributes(model)

    def fails(event: Any) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), evaluator.bound(model):
        evaluator.after_step(fails)
        evaluator.train(max_steps=2)
    assert attributes(model) == before
    with evaluator.bound(model):
        assert evaluator.train(max_steps=2).steps == 2


def test_an_interrupt_comes_out_as_itself_and_ctrl_c_works_afterwards() -> None:
    class Stopped(KeyboardInterrupt):
        pass

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            raise Stopped

    model, handler = Net(), signal.getsignal(signal.SIGINT)
    evaluator = make_evaluator(listener=listen)
    before = attributes(model)
    with pytest.raises(Stopped), evaluator.bound(model):
        evaluator.train(max_epochs=2)
    assert signal.getsignal(signal.SIGINT) is handler and attributes(model) == before


def test_flags_that_a_dry_run_leaves_toggled_are_put_back() -> None:
    class Toggling(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            first, second = self.optimizers()  # type: ignore[misc]
            self.toggle_optimizer(first)
            self.manual_backward(torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))
            first.step()
            self.untoggle_optimizer(first)
            second.step()

    model, evaluator = Toggling(), make_evaluator()
    with evaluator.bound(model):
        evaluator.iterate(2)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_users_hooks_may_keep_what_they_learn_in_a_training() -> None:
    class Counting(Net):
        def on_train_epoch_end(self) -> None:
            self.epochs_seen = getattr(self, "epochs_seen", 0) + 1

    class Ends(Callback):
        pass

    model, evaluator = Counting(), make_evaluator(make_trainer(callbacks=[Ends()]))
    with evaluator.bound(model):
        evaluator.train(max_epochs=2)
        evaluator.iterate(7)
    assert model.epochs_seen == 2
