"""The pruner on the shipped evaluator and real images, up to the proof that masked and compact models agree."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from nnicompress.data.digits import Digits
from nnicompress.evaluators.evaluation import Evaluation
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.evaluators.training_step import SupervisedStep
from nnicompress.models.resnet import resnet20
from nnicompress.pruning.importance import importance_of
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.scores import measure
from nnicompress.pruning.settings import ImportanceSettings
from nnicompress.shrink.proof import prove
from nnicompress.shrink.surgery import shrink
from nnicompress.trace import trace

CONVS = [{"op_types": ["Conv2d"], "sparse_ratio": 0.4}]


@pytest.fixture
def evaluator():
    data = Digits(batch_size=32)
    return TorchEvaluator(
        TrainingLoop(data.train_loader),
        trace(torch.optim.SGD)(lr=0.05, momentum=0.9, weight_decay=5e-4),
        SupervisedStep(nn.CrossEntropyLoss()),
        evaluating_func=Evaluation({"validation": data.validation_loader}, trace(MulticlassAccuracy)(num_classes=10)),
    )


def test_prune_train_masked_shrink_and_prove(evaluator):
    torch.manual_seed(0)
    model = resnet20(10, 1, 8)
    with evaluator.bound(model):
        evaluator.train(max_steps=4)
    schedule = {"name": "agp", "total_times": 2, "interval_steps": 3}
    result = Pruner(
        CONVS, evaluator, importance={"name": "taylor", "training_steps": 2}, allocation="global", schedule=schedule
    ).compress(model)
    with evaluator.bound(model):
        handle = result.masks.attach(evaluator)
        evaluator.train(max_steps=4)
        masked = evaluator.evaluate()["default"]
        handle.remove()
    for name, keep in result.masks.keep.items():
        assert model.get_parameter(name)[~keep].count_nonzero() == 0
    compact = shrink(model, result.groups, result.removal)
    batches = [((torch.rand(size, 1, 8, 8),), {}) for size in (2, 3)]
    prove(model, compact, result.groups, result.removal, batches)
    with evaluator.bound(compact):
        assert evaluator.evaluate()["default"] == pytest.approx(masked)
    kept = {row.name: row.kept for row in result.rows}
    assert compact.get_submodule("layer3.2.conv1").weight.shape[0] == kept["layer3.2.conv1"]


@pytest.mark.parametrize("aggregation", ["sum_of_squares", "square_of_sum"])
def test_taylor_on_the_shipped_evaluator_is_a_loop_by_hand(evaluator, aggregation):
    """Gradients by plain autograd on the same batches, in training mode as the loop has it."""
    torch.manual_seed(0)
    model = resnet20(10, 1, 8)
    importance = importance_of(ImportanceSettings(name="taylor", aggregation=aggregation))
    groups = Pruner(CONVS, evaluator, importance="l1").compress(copy.deepcopy(model)).groups
    state = copy.deepcopy(model.state_dict())
    with evaluator.bound(model):
        scores = measure(evaluator, importance, groups.widths, {}, training_steps=3)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    reference = copy.deepcopy(model).train()
    batches = iter(Digits(batch_size=32).train_loader(0))
    width = groups["layer2.1.conv1"]
    expected = np.zeros(width.size)
    for _ in range(3):
        inputs, targets = next(batches)
        reference.zero_grad()
        nn.functional.cross_entropy(reference(inputs), targets).backward()
        block = reference.get_submodule("layer2.1")
        for channel in range(width.size):
            changes = [
                (block.conv1.weight.grad * block.conv1.weight)[channel].flatten(),
                (block.bn1.weight.grad * block.bn1.weight)[channel].flatten(),
                (block.bn1.bias.grad * block.bn1.bias)[channel].flatten(),
                (block.conv2.weight.grad * block.conv2.weight)[:, channel].flatten(),
            ]
            change = torch.cat(changes).detach().double()
            gate = changes[-1].detach().double().sum()  # what the channel's only reader makes of it
            total = change.square().sum() if aggregation == "sum_of_squares" else gate.square()
            expected[channel] += float(total) / 3
    np.testing.assert_allclose(scores["layer2.1.conv1"], expected, rtol=1e-3)
