"""Importances that are learned in training, against training loops written out by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.evaluators.training_step import SupervisedStep
from nnicompress.pruning.importance import IMPORTANCES
from nnicompress.pruning.learning import Movement
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.pruner import Pruner
from nnicompress.trace import trace
from tests.pruning.simple import ConvNet, SimpleEvaluator, digits

HEAD = [{"op_names": ["head"], "sparse_ratio": 0.5}]
RATE = 0.1


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE, momentum=0.9, weight_decay=0.01)


def loss_of(model, batch, head_weight):
    """The loss with other weights in the last layer, as the paper's masked product has them."""
    inputs, targets = batch
    weights = {"head.weight": head_weight}
    return nn.functional.cross_entropy(torch.func.functional_call(model, weights, (inputs,)), targets)


def straight_through(model, batches, keep):
    """Sanh et al. 2020: W and S are learned through W * M with dL/dM passed on to S; returns S and the dense W."""
    model.train()
    optimizer = sgd(model.parameters())
    scores = torch.zeros(model.head.weight.shape, dtype=torch.float64)
    for batch in batches:
        optimizer.zero_grad()
        product = (model.head.weight * keep).detach().requires_grad_()
        loss_of(model, batch, product).backward()
        scores -= (product.grad * model.head.weight.detach()).double()
        model.head.weight.grad = product.grad * keep
        optimizer.step()
    return scores, model.head.weight.detach()


@pytest.mark.parametrize("kept", [1.0, 0.6])
def test_movement_is_the_straight_through_estimator_written_out(kept):
    torch.manual_seed(0)
    model, batches = ConvNet(), digits(6)
    keep = torch.rand(model.head.weight.shape) < kept
    expected, dense = straight_through(copy.deepcopy(model), batches, keep)

    evaluator = SimpleEvaluator(batches, sgd)
    learned = Movement(IMPORTANCES["movement"], (), {"head.weight": (1, 1)}, penalty=0.0, rate=1.0)
    with evaluator.bound(model):
        handle = learned.attach(evaluator, Masks({"head.weight": keep} if kept < 1 else {}))
        evaluator.train(max_steps=len(batches))
        handle.remove()
    assert bool((model.head.weight[~keep] == 0).all())  # between steps the model is masked
    learned.uncover(model)
    np.testing.assert_allclose(learned.scores()["head.weight"], expected.flatten().numpy(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(model.head.weight.detach(), dense, rtol=1e-5, atol=1e-7)
    assert float(dense[~keep].abs().sum()) > 0 or kept == 1.0


def test_weights_return_when_their_scores_rise():
    """Behind a mask a score goes on; the next removal takes others, and the weights behind come back."""
    torch.manual_seed(0)
    model = ConvNet()
    schedule = {"name": "linear", "total_times": 3, "interval_steps": 8}
    pruner = Pruner(
        HEAD, SimpleEvaluator(digits(8), sgd), importance={"name": "movement", "training_steps": 4},
        granularity="element", schedule=schedule,
    )  # fmt: skip
    seen = []
    remove = pruner._remove

    def watched(*args):
        removed, allotments = remove(*args)
        seen.append(set(removed.tensors["head.weight"].tolist()))
        return removed, allotments

    pruner._remove = watched
    result = pruner.compress(model)
    assert [len(each) for each in seen] == [213, 427, 640]
    returned = (seen[0] - seen[1]) | (seen[1] - seen[2])
    assert returned
    weights = model.head.weight.detach().flatten()
    back = torch.tensor(sorted(returned - seen[2]))
    assert bool((weights[back] != 0).all())
    assert int((weights == 0).sum()) == 640 == result.totals["weights"].removed


def test_movement_prefers_weights_that_grow_over_large_ones():
    """A large weight that descent drives to zero goes before a small one that grows."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.1]]))
    target = torch.tensor([[0.0], [1.0]])

    class Regression(SimpleEvaluator):
        def loss(self, batch):
            return nn.functional.mse_loss(self.model(batch[0]), batch[1])

    evaluator = Regression([(torch.eye(2), target)], lambda p: torch.optim.SGD(p, lr=0.05))
    Pruner(
        [{"op_types": ["Linear"], "sparse_ratio": 0.5}], evaluator,
        importance={"name": "movement", "training_steps": 10}, granularity="element",
    ).compress(model)  # fmt: skip
    assert model.weight[0, 0] == 0 and model.weight[0, 1] > 0.1


def test_soft_movement_descends_on_the_sigmoids_of_its_scores():
    torch.manual_seed(0)
    model, batches = ConvNet(), digits(5)
    reference = copy.deepcopy(model).train()
    optimizer = sgd(reference.parameters())
    scores = torch.zeros(reference.head.weight.shape, dtype=torch.float64, requires_grad=True)
    for inputs, targets in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(inputs), targets).backward()
        (penalty,) = torch.autograd.grad(0.3 * torch.sigmoid(scores).sum(), scores)
        with torch.no_grad():
            scores -= 2.0 * (reference.head.weight.grad * reference.head.weight).double() + 2.0 * penalty
        optimizer.step()
    evaluator = SimpleEvaluator(batches, sgd)
    learned = Movement(IMPORTANCES["soft_movement"], (), {"head.weight": (1, 1)}, penalty=0.3, rate=2.0)
    with evaluator.bound(model):
        learned.attach(evaluator, Masks({}))
        evaluator.train(max_steps=5)
    expected = torch.sigmoid(scores).detach().flatten().numpy()
    np.testing.assert_allclose(learned.scores()["head.weight"], expected, rtol=1e-5)


def test_slim_trains_with_the_l1_norm_of_the_scales_beside_the_loss():
    torch.manual_seed(0)
    model, batches = ConvNet(), digits(4)
    reference = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(reference.parameters(), lr=RATE)
    for inputs, targets in batches:
        optimizer.zero_grad()
        penalty = 0.5 * reference.bn.weight.abs().sum()
        (nn.functional.cross_entropy(reference(inputs), targets) + penalty).backward()
        optimizer.step()
    evaluator = TorchEvaluator(
        TrainingLoop(lambda seed: batches, validate_every=0),
        trace(torch.optim.SGD)(lr=RATE),
        SupervisedStep(nn.CrossEntropyLoss()),
    )
    pruner = Pruner(
        [{"op_names": ["stem"], "sparse_ratio": 0.25}], evaluator,
        importance={"name": "slim", "training_steps": 4, "regular_scale": 0.5},
    )  # fmt: skip
    result = pruner.compress(model)
    scales = reference.bn.weight.detach().abs()
    assert result.removal["stem"].tolist() == sorted(scales.argsort()[:2].tolist())
    kept = result.masks.keep["bn.weight"]
    torch.testing.assert_close(model.bn.weight.detach()[kept], reference.bn.weight.detach()[kept])
    assert not model.bn._forward_hooks and not evaluator._hooks.penalties


def test_a_state_goes_on_where_it_was():
    torch.manual_seed(0)
    model, batches = ConvNet(), digits(6)
    keep = torch.rand(model.head.weight.shape) < 0.5
    expected, dense = straight_through(copy.deepcopy(model), batches, keep)
    optimizer = sgd(model.parameters())
    evaluator = SimpleEvaluator(batches, lambda parameters: optimizer)
    first = Movement(IMPORTANCES["movement"], (), {"head.weight": (1, 1)}, penalty=0.0, rate=1.0)
    with evaluator.bound(model):
        handle = first.attach(evaluator, Masks({"head.weight": keep}))
        evaluator.train(max_steps=3)
        handle.remove()
        second = Movement(IMPORTANCES["movement"], (), {"head.weight": (1, 1)}, penalty=0.0, rate=1.0)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        evaluator.batches = batches[3:]
        second.attach(evaluator, Masks({"head.weight": keep}))
        evaluator.train(max_steps=3)
    second.uncover(model)
    np.testing.assert_allclose(second.scores()["head.weight"], expected.flatten().numpy(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(model.head.weight.detach(), dense, rtol=1e-5, atol=1e-7)
