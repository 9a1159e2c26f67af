"""Measuring a model: the shipped evaluation, and what a user's evaluating_func may return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from nnicompress.errors import UserError
from nnicompress.evaluators.evaluation import Evaluation
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.trace import trace
from tests.evaluators.cases import make_dataset, make_model

ACCURACY = trace(MulticlassAccuracy)(num_classes=3, average="micro")


def batches(first: int, last: int) -> Any:
    """A role with a last batch that is smaller than the others."""
    inputs, targets = make_dataset(100).tensors

    def load() -> Any:
        for start in range(first, last, 8):
            rows = slice(start, min(start + 8, last))
            yield inputs[rows], targets[rows]

    return load


ROLES = {"validation": batches(0, 30), "test": batches(30, 51)}


def test_metric_and_loss_equal_a_loop_by_hand_on_each_role() -> None:
    model = make_model()
    model.train()
    model[3].eval()
    evaluator = TorchEvaluator(evaluating_func=Evaluation(ROLES, ACCURACY, loss=nn.CrossEntropyLoss()))
    inputs, targets = make_dataset(100).tensors
    random_state = torch.get_rng_state()
    with evaluator.bound(model):
        found = {split: evaluator.evaluate(split) for split in ROLES}
        assert evaluator.evaluate() == found["validation"]
    assert [module.training for module in model] == [True, True, True, False, True]
    assert torch.equal(torch.get_rng_state(), random_state)
    model.eval()
    for split, rows in (("validation", slice(0, 30)), ("test", slice(30, 51))):
        with torch.no_grad():
            outputs = model(inputs[rows])
        accuracy = (outputs.argmax(1) == targets[rows]).float().mean().item()
        assert found[split] == {
            "default": pytest.approx(accuracy),
            "loss": pytest.approx(nn.functional.cross_entropy(outputs, targets[rows]).item(), rel=1e-5),
        }


def test_several_metrics_are_named_and_the_first_is_the_default() -> None:
    f1 = trace(MulticlassF1Score)(num_classes=3)
    values = Evaluation(ROLES, {"f1": f1, "accuracy": ACCURACY})(make_model())
    assert values.keys() == {"default", "f1", "accuracy"} and values["default"] == values["f1"] != values["accuracy"]


def test_no_graph_is_kept_and_bfloat16_is_autocast() -> None:
    model, seen = make_model(), []
    model.register_forward_hook(lambda m, args, output: seen.append((output.requires_grad, output.dtype)))
    Evaluation({"validation": batches(0, 8)}, ACCURACY)(model)
    Evaluation({"validation": batches(0, 8)}, ACCURACY, precision="bfloat16")(model)
    assert seen == [(False, torch.float32), (False, torch.bfloat16)]


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (Evaluation({"test": batches(0, 8)}, ACCURACY), "no data for the split 'validation'; there is 'test'"),
        (Evaluation({"validation": list}, ACCURACY), "the split 'validation' has no batches"),
        (
            Evaluation(ROLES, trace(MulticlassConfusionMatrix)(num_classes=3)),
            r"'default' \(MulticlassConfusionMatrix\) computes a tensor of shape \(3, 3\), and one number",
        ),
    ],
)
def test_what_cannot_be_measured_is_told(evaluation: Evaluation, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluation(make_model())
    with pytest.raises(UserError, match="an evaluation needs a metric"):
        Evaluation(ROLES, {})


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (0.5, {"default": 0.5}),
        (torch.tensor(2), {"default": 2.0}),
        ({"default": torch.tensor([0.25]), "f1": 1}, {"default": 0.25, "f1": 1.0}),
    ],
)
def test_a_users_function_returns_a_number_or_a_dict(returned: Any, expected: dict[str, float]) -> None:
    evaluator = TorchEvaluator(evaluating_func=lambda model: returned)
    with evaluator.bound(make_model()):
        assert evaluator.evaluate() == evaluator.evaluate("test") == expected


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned NoneType; it must be a float or a dict"),
        ({"accuracy": 0.5}, r"without the key 'default'; it has \['accuracy'\]"),
        ({"default": "high"}, "returned str for 'default'"),
        (torch.zeros(2), "returned Tensor; it must be a float"),
    ],
)
def test_anything_else_is_told(returned: Any, message: str) -> None:
    evaluator = TorchEvaluator(evaluating_func=lambda model: returned)
    with evaluator.bound(make_model()), pytest.raises(UserError, match=message):
        evaluator.evaluate()


def test_hooks_come_first_and_the_split_is_passed_where_it_is_wanted() -> None:
    order: list[Any] = []

    def evaluating_func(model: nn.Module, *, split: str) -> float:
        order.append(split)
        return 1.0

    model = make_model()
    evaluator = TorchEvaluator(evaluating_func=evaluating_func)
    with evaluator.bound(model):
        evaluator.before_evaluate(lambda model: order.append((model, torch.is_grad_enabled())))
        evaluator.evaluate("test")
        evaluator.evaluate()
        with pytest.raises(UserError, match="no split 'train'"):
            evaluator.evaluate("train")
    assert order == [(model, False), "test", (model, False), "validation"]
