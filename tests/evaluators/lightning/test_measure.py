"""Measurements are what the module logs, under the user's name for it and under `default`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from nnicompress.errors import UserError
from nnicompress.evaluators.lightning.classifier import Classifier
from nnicompress.evaluators.lightning.metrics import averaged, with_default
from nnicompress.trace import trace
from tests.evaluators.cases import assert_equal_weights, make_model, weights
from tests.evaluators.lightning.cases import Net, loaders, make_evaluator, make_trainer, ordered


def accuracy(model: nn.Module, num_samples: int, first: int = 0) -> float:
    """By hand, over the samples from `first` on."""
    inputs, targets = ordered(num_samples).dataset.tensors  # type: ignore[attr-defined]
    training = model.training
    model.eval()
    with torch.no_grad():
        correct = (model(inputs[first:]).argmax(1) == targets[first:]).float().mean()
    model.train(training)
    return float(correct)


def test_validation_and_test_are_measured_on_their_own_data() -> None:
    model, fired = Net(), list[Any]()
    evaluator = make_evaluator(data=loaders(test=ordered(16)))
    before, state = weights(model), torch.get_rng_state()
    with evaluator.bound(model):
        evaluator.before_evaluate(fired.append)
        values = evaluator.evaluate()
        assert set(values) == {"default", "val_acc", "val_loss"}
        assert values["default"] == values["val_acc"] == pytest.approx(accuracy(model, 40))
        # Without a test_step the validation's serves, on the test data.
        assert evaluator.evaluate("test")["default"] == pytest.approx(accuracy(model, 16))
    assert fired == [model, model] and model.training and torch.equal(torch.get_rng_state(), state)
    assert_equal_weights(model, before)


def test_several_loaders_are_averaged() -> None:
    class TwoLoaders(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

    model = TwoLoaders()
    evaluator = make_evaluator(data=loaders(validation=[ordered(8), ordered(48)]))
    expected = (accuracy(model, 8) + accuracy(model, 48)) / 2
    with evaluator.bound(model):
        values = evaluator.evaluate()
        assert set(values) == {"default", "val_acc", "val_loss"} and values["default"] == pytest.approx(expected)
        result = evaluator.train(max_epochs=1)
    after = (accuracy(model, 8) + accuracy(model, 48)) / 2
    assert result.metrics[0]["default"] == pytest.approx(after)


def test_a_test_step_of_its_own_is_used_and_its_name_follows_the_metrics() -> None:
    class WithTest(Net):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_acc", 0.125)

    class Data(LightningDataModule):
        def val_dataloader(self) -> Any:
            return ordered(40)

        def setup(self, stage: str) -> None:
            if stage == "test":
                self.rows = 24

        def test_dataloader(self) -> Any:
            return ordered(self.rows)

    model = WithTest()
    evaluator = make_evaluator(data=Data())
    with evaluator.bound(model):
        assert evaluator.evaluate("test") == {"default": 0.125, "test_acc": 0.125}
    plain = Net()
    evaluator = make_evaluator(data=Data())
    with evaluator.bound(plain):
        assert evaluator.evaluate("test")["default"] == pytest.approx(accuracy(plain, 24))


def test_names_of_metrics() -> None:
    assert averaged([{"acc/dataloader_idx_0": 0.5, "loss": 1}, {"acc/dataloader_idx_1": 1.0}]) == {
        "acc": 0.75,
        "loss": 1,
    }
    logged = {"test/acc": 1.0, "value": 2.0}
    assert with_default(logged, "val/acc", "test")["default"] == 1.0
    assert with_default(logged, "value", "test")["default"] == 2.0
    with pytest.raises(UserError, match="metric='val/ac' is not logged in validation; did you mean 'val/acc'?"):
        with_default({"val/acc": 1.0}, "val/ac")


def test_what_is_not_logged_is_told_with_what_is() -> None:
    model = Net()
    evaluator = make_evaluator(metric="default")
    with evaluator.bound(model):
        with pytest.raises(UserError, match="metric='default' is not logged in validation; it logs 'val_acc', 'val_l"):
            evaluator.evaluate()
        with pytest.raises(UserError, match="metric='default' is not logged in validation"):
            evaluator.train(max_epochs=1)


class Plain(nn.Module):
    """What a served program is: no LightningModule, and nothing to train."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.call = [model]

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return self.call[0](inputs)


def test_a_served_program_stands_in_for_the_modules_forward() -> None:
    model, other = Net(), Net(seed=3).eval()
    evaluator = make_evaluator()
    served = Plain(other.net)
    with pytest.raises(UserError, match="the bound model is a Plain, no LightningModule"), evaluator.bound(served):
        pass
    with evaluator.bound(model):
        own = evaluator.evaluate()["default"]
    before = weights(model)
    with evaluator.bound(served):
        found = evaluator.evaluate()["default"]
        with pytest.raises(UserError, match="can be evaluated, not trained"):
            evaluator.train(max_steps=1)
    assert own == pytest.approx(accuracy(model, 40)) and found == pytest.approx(accuracy(other, 40)) and own != found
    assert_equal_weights(model, before)
    assert "forward" not in vars(model)


def test_a_module_that_never_calls_forward_can_not_be_stood_in_for() -> None:
    class Around(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    model, evaluator = Around(), make_evaluator()
    with evaluator.bound(model):
        evaluator.evaluate()
    with evaluator.bound(Plain(model.net)), pytest.raises(UserError, match="Around never calls forward in validation"):
        evaluator.evaluate()


@pytest.mark.parametrize("traced", [True, False])
def test_a_plain_model_is_wrapped_by_the_classifier(traced: bool) -> None:
    metric = trace(MulticlassAccuracy)(num_classes=3, average="micro")
    module: Any = (
        trace(Classifier)(loss=nn.CrossEntropyLoss(), metric=metric)
        if traced
        else lambda model: Classifier(model, nn.CrossEntropyLoss(), metric)
    )
    model, expected = make_model(), Net()
    keys = list(model.state_dict())
    optimizer = trace(torch.optim.SGD)(model.parameters(), lr=0.1, momentum=0.9)
    evaluator = make_evaluator(data=loaders(test=ordered(16)), module=module, optimizers=optimizer, metric="default")
    own = make_evaluator()
    torch.manual_seed(1)
    with own.bound(expected):
        wanted = own.train(max_epochs=2)
    torch.manual_seed(1)
    with evaluator.bound(model):
        (inputs,), _ = evaluator.example_inputs()
        evaluator.iterate(2)
        result = evaluator.train(max_epochs=2)
        assert evaluator.evaluate() == {"default": pytest.approx(accuracy(model, 40))}
        assert evaluator.evaluate("test")["default"] == pytest.approx(accuracy(model, 16))
    assert inputs.shape == (8, 5) and list(model.state_dict()) == keys
    assert_equal_weights(model, expected.net)
    assert result.losses == wanted.losses
    assert [m["default"] for m in result.metrics] == pytest.approx([m["default"] for m in wanted.metrics])
    served = Plain(model)
    model.eval()
    with evaluator.bound(served):
        assert evaluator.evaluate()["default"] == pytest.approx(accuracy(model, 40))


def test_a_classifier_without_a_metric_logs_its_loss() -> None:
    model = make_model().eval()
    evaluator = make_evaluator(module=trace(Classifier)(loss=nn.CrossEntropyLoss()), metric="default")
    inputs, targets = ordered(40).dataset.tensors  # type: ignore[attr-defined]
    with evaluator.bound(model):
        found = evaluator.evaluate()
    assert found["default"] == pytest.approx(nn.functional.cross_entropy(model(inputs), targets).item())


def test_callbacks_may_log_what_is_measured() -> None:
    class Logs(Callback):
        def on_validation_epoch_end(self, trainer: Any, module: LightningModule) -> None:
            module.log("mine", 0.5)

    model = Net()
    evaluator = make_evaluator(make_trainer(callbacks=[Logs()]), metric="mine")
    with evaluator.bound(model):
        assert evaluator.evaluate()["default"] == 0.5
        assert evaluator.train(max_epochs=1).metrics[0]["default"] == 0.5
