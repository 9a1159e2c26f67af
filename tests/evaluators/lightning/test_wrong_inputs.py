"""What is wrong is said in one line that names it and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.optim import LBFGS, SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from nnicompress.errors import UserError
from nnicompress.evaluators.lightning.classifier import Classifier
from nnicompress.evaluators.lightning.evaluator import LightningEvaluator
from nnicompress.evaluators.lightning.package import Package, refuse_sharding
from nnicompress.trace import trace
from tests.evaluators.cases import make_model
from tests.evaluators.lightning.cases import Net, loaders, make_evaluator, make_trainer, ordered
from tests.evaluators.lightning.test_train import TwoOptimizers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trainer": Trainer}, "trainer is the class Trainer, and no Lightning Trainer; write trainer=nnicompress"),
        ({"trainer": "cpu"}, "trainer is 'cpu', and no Lightning Trainer"),
        ({"trainer": trace(SGD)(lr=0.1)}, r"trainer is trace\(SGD\)\(lr=0.1\), and no Lightning Trainer"),
        ({"trainer": trace(Net)()}, "trainer: Net is no Lightning Trainer"),
        ({"trainer": trace(Trainer)(strategy="fsdp")}, r"Trainer\(strategy='fsdp'\) shards the parameters"),
        ({"data": 3}, "data is int; it must be a pytorch_lightning.LightningDataModule, a mapping of loaders"),
        ({"data": ordered()}, "data is DataLoader; it must be"),
        ({"data": {"trian": ordered()}}, "data has the key 'trian'; did you mean 'train'?"),
        ({"data": {"train": 3}}, r"data\['train'\] is int; it must be a loader"),
        ({"data": {}}, "data is an empty mapping"),
        ({"module": Net()}, "module is a built Net; bind it as the model"),
        ({"module": "Net"}, "module is str; it must be a function or class"),
        ({"interval": "epochs"}, "interval='epochs' is neither 'step' nor 'epoch'"),
        ({"optimizers": SGD([torch.zeros(1)], lr=0.1)}, "SGD is already built"),
        ({"lr_schedulers": trace(OneCycleLR)(max_lr=0.1)}, "lr_schedulers are given without optimizers"),
        ({"dummy_input": 3}, "dummy_input is int"),
    ],
)
def test_wrong_arguments_are_named_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LightningEvaluator(**{"trainer": make_trainer(), **arguments})


def test_an_unknown_argument_of_the_trainer_is_named() -> None:
    with pytest.raises(UserError, match="takes no 'max_epoch'; did you mean 'max_epochs'"):
        trace(Trainer)(max_epoch=3)


def test_strategies_that_shard_are_refused() -> None:
    class FSDPStrategy:
        pass

    class Mine(FSDPStrategy):
        pass

    with pytest.raises(UserError, match="is FSDPStrategy, which shards the parameters; compress on one device"):
        refuse_sharding(Mine())


def test_a_trainer_that_can_not_be_built_is_told() -> None:
    evaluator, model = make_evaluator(make_trainer(precision="7-bit")), Net()
    with evaluator.bound(model), pytest.raises(UserError, match="Trainer can't be built: .*7-bit"):
        evaluator.evaluate()


def net(configure: Any) -> LightningModule:
    return type("Mine", (Net,), {"configure_optimizers": configure})()  # type: ignore[no-any-return]


def captured(model: nn.Module) -> Any:
    old = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    return lambda self: SGD(old, lr=0.1)


@pytest.mark.parametrize(
    ("configure", "message"),
    [
        (lambda self: None, "Mine.configure_optimizers returns None, so nothing would be trained"),
        (lambda self: {"optimiser": 3}, "returns dict without a torch optimizer"),
        (lambda self: LBFGS(self.parameters()), "LBFGS calls a closure several times a step"),
        (
            lambda self: SGD(self.net[:3].parameters(), lr=0.1),
            "2 trainable parameters are in no optimizer: 'net.4.weight', 'net.4.bias'; give them to one, or freeze",
        ),
        (
            captured(Net()),
            "6 trainable parameters are in no optimizer.*; the optimizers hold 6 parameters that are not",
        ),
        (
            lambda self: [SGD(self.net[:3].parameters()), SGD(self.net[3:].parameters())],
            "2 optimizers, and Mine uses automatic optimization, which takes one",
        ),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_wrong_optimizers_are_told_before_a_step(configure: Any, message: str, dry: bool) -> None:
    model, evaluator = net(configure), make_evaluator()
    with evaluator.bound(model), pytest.raises(UserError, match=message):
        evaluator.iterate(1) if dry else evaluator.train(max_steps=1)


def test_a_parameter_in_two_optimizers_is_told() -> None:
    class Twice(TwoOptimizers):
        def configure_optimizers(self) -> Any:
            return SGD(self.net.parameters(), lr=0.1), AdamW(self.net[4].parameters(), lr=0.01)

    model, evaluator = Twice(), make_evaluator()
    message = r"parameter 'net.4.weight' is in SGD \(optimizer 0\) and in AdamW \(optimizer 1\)"
    with evaluator.bound(model), pytest.raises(UserError, match=message):
        evaluator.train(max_steps=1)


def test_a_model_of_the_wrong_kind_is_told_when_it_is_bound() -> None:
    evaluator = make_evaluator()
    plain = make_model()
    with (
        pytest.raises(
            UserError, match="bound model is a Sequential, no LightningModule, .*give LightningEvaluator\\(mod"
        ),
        evaluator.bound(plain),
    ):
        pass

    class Other(nn.Module):
        __module__ = "lightning.pytorch.core"

    with (
        pytest.raises(UserError, match="a LightningModule of lightning.pytorch, and the Trainer is of pytorch_lightni"),
        evaluator.bound(Other()),
    ):
        pass
    assert Package.of(make_model()) is None


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda model: model, "<lambda> returned Sequential, and no LightningModule"),
        (lambda model: Net(), "returned a Net that does not hold the model it was given"),
    ],
)
def test_a_module_function_that_makes_no_module_of_the_model_is_told(module: Any, message: str) -> None:
    model, evaluator = make_model(), make_evaluator(module=module)
    with evaluator.bound(model), pytest.raises(UserError, match=message):
        evaluator.evaluate()


def test_a_classifier_needs_the_recipes_optimizer() -> None:
    model = make_model()
    evaluator = make_evaluator(module=trace(Classifier)(loss=nn.CrossEntropyLoss()))
    with evaluator.bound(model), pytest.raises(UserError, match="Classifier.configure_optimizers returns None"):
        evaluator.train(max_steps=1)


def test_roles_without_data_are_told() -> None:
    model = Net()
    evaluator = make_evaluator(data={"train": ordered()})
    assert evaluator.capabilities == {"train", "iterate", "example_inputs", "resume"}
    with evaluator.bound(model):
        with pytest.raises(UserError, match=r"evaluate\(\) needs data: it measures the model"):
            evaluator.evaluate()
        evaluator.train(max_steps=1)
    evaluator = make_evaluator(data=loaders())
    with evaluator.bound(model), pytest.raises(UserError, match="no data for 'test': data has 'train', 'validation'"):
        evaluator.evaluate("test")
    evaluator = LightningEvaluator(make_trainer())
    assert evaluator.capabilities == {"train", "iterate", "evaluate", "example_inputs", "resume"}
    with evaluator.bound(model):
        for call, role in ((lambda: evaluator.train(max_steps=1), "train"), (evaluator.evaluate, "validation")):
            with pytest.raises(
                UserError, match=f"no data for '{role}': Net has no .*dataloader\\(\\); add it, or give"
            ):
                call()


def test_a_training_without_a_step_is_told() -> None:
    evaluator, model = make_evaluator(make_trainer(limit_train_batches=0)), Net()
    with evaluator.bound(model), pytest.raises(UserError, match="Trainer.fit made no optimizer step"):
        evaluator.train(max_steps=2)


def test_fewer_steps_than_asked_are_a_warning() -> None:
    class Ends(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    evaluator, model = make_evaluator(), Ends()
    with (
        evaluator.bound(model),
        pytest.warns(UserWarning, match=r"ran 4 optimizer steps; max_epochs=2 asked for 12 \(6 an epoch\): 8 too few"),
    ):
        evaluator.train(max_epochs=2)


def test_a_trainer_that_would_start_processes_itself_is_refused() -> None:
    evaluator = make_evaluator(trace(Trainer)(accelerator="cpu", max_epochs=1, strategy="ddp", devices=2))
    model = Net()
    with (
        evaluator.bound(model),
        pytest.raises(UserError, match="would start 2 processes in the middle of a run; .*torchrun --nproc-per-node 2"),
    ):
        evaluator.train()
