"""Scores against independent truths: hand-worked numbers, an element loop, and autograd through gates."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import JobError
from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.graph.widths import Slot, Width
from nnicompress.pruning import scores
from nnicompress.pruning.importance import IMPORTANCES, Importance, importance_of
from nnicompress.pruning.scores import measure, width_scores
from nnicompress.pruning.settings import ImportanceSettings
from tests.pruning.simple import ConvNet, SimpleEvaluator, digits


class SelfConsuming(nn.Module):
    """The middle convolution reads and writes one width: an element [c, c] lies in channel group c twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3)
        self.loop = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.bn(x + self.loop(x))).mean((2, 3)))


def widths_of(model):
    return find_channel_groups(capture(model, (digits(1, 2)[0][0],))).widths


def taylor(aggregation):
    return importance_of(ImportanceSettings(name="taylor", aggregation=aggregation))


def gate_derivatives(model: nn.Module, width: Width, batch) -> Tensor:
    """dL/dz at z = 1 where z[i] multiplies channel i of every activation that a layer reads: shape [size], float64.

    The gate sits on the activations, by forward hooks; weights and their gradients play no part.
    """
    gate = torch.ones(width.size, dtype=torch.float64, requires_grad=True)
    handles = []
    for slot in width.consumers:
        module = model.get_submodule(slot.tensor.rpartition(".")[0])
        index = torch.full((module.weight.shape[1],), -1)
        for group, members in enumerate(slot.indices):
            index[torch.from_numpy(members)] = group

        def multiply(module, inputs, index=index):
            scale = torch.where(index >= 0, gate[index.clamp(min=0)], torch.ones((), dtype=torch.float64))
            shape = [1, -1] + [1] * (inputs[0].dim() - 2)
            return (inputs[0] * scale.view(shape),)

        handles.append(module.register_forward_pre_hook(multiply))
    inputs, targets = batch
    loss = nn.functional.cross_entropy(model(inputs.double()), targets)
    for handle in handles:
        handle.remove()
    return torch.autograd.grad(loss, gate)[0]


@pytest.mark.parametrize("network", [ConvNet, SelfConsuming])
def test_square_of_sum_is_the_squared_derivative_by_a_gate(network):
    torch.manual_seed(1)
    batches, model = digits(3), network()
    widths = widths_of(model)
    assert len(widths) == (2 if network is ConvNet else 1)
    evaluator = SimpleEvaluator(batches)
    with evaluator.bound(model):
        scores = measure(evaluator, taylor("square_of_sum"), widths, {}, training_steps=3)
    reference = copy.deepcopy(model).double().eval()
    for width in widths:
        expected = torch.stack([gate_derivatives(reference, width, batch) ** 2 for batch in batches]).mean(0)
        np.testing.assert_allclose(scores[width.name], expected.numpy(), rtol=1e-4, atol=1e-7 * float(expected.max()))


@pytest.mark.parametrize("network", [ConvNet, SelfConsuming])
def test_square_of_sum_is_the_gate_derivative_to_1e_5_in_double_precision(network):
    torch.manual_seed(2)
    batch, model = digits(1)[0], network().double().eval()
    widths = find_channel_groups(capture(model, (digits(1, 2)[0][0].double(),))).widths
    nn.functional.cross_entropy(model(batch[0].double()), batch[1]).backward()
    parameters = dict(model.named_parameters())
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    scores = width_scores(parameters, gradients, taylor("square_of_sum"), widths)
    for width in widths:
        expected = gate_derivatives(model, width, batch) ** 2
        torch.testing.assert_close(scores[width.name], expected, rtol=1e-5, atol=1e-12)


def test_sum_of_squares_is_a_loop_over_single_elements():
    torch.manual_seed(0)
    batches, model = digits(2), ConvNet(width=4, inner=5)
    widths = widths_of(model)
    evaluator = SimpleEvaluator(batches)
    with evaluator.bound(model):
        scores = measure(evaluator, taylor("sum_of_squares"), widths, {}, training_steps=2)
    model.eval()
    expected = {width.name: np.zeros(width.size) for width in widths}
    for inputs, targets in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        for width in widths:
            for slot in width.slots:
                parameter = dict(model.named_parameters()).get(slot.tensor)
                if parameter is None:
                    continue
                for group in range(width.size):
                    for position in np.ndindex(*parameter.shape):
                        if position[slot.dim] in slot.indices[group]:
                            change = parameter.grad[position].item() * parameter[position].item()
                            expected[width.name][group] += change**2 / len(batches)
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values, rtol=1e-4)


WEIGHT = torch.tensor([[3.0, -4.0], [0.0, 1.0]])
GRADIENT = torch.tensor([[1.0, 0.5], [2.0, -3.0]])
PLAIN = Width(
    "a", 2, (Slot("a.weight", 0, np.array([[0], [1]]), "output"), Slot("b.weight", 1, np.array([[0], [1]]), "input"))
)


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ({"name": "l1"}, [7, 1]),
        ({"name": "l2"}, [5, 1]),
        ({"name": "l1", "scope": "group"}, [7 + 10, 1 + 20]),
        ({"name": "taylor"}, [3**2 + 2**2 + 10**2, 3**2 + 40**2]),
        ({"name": "taylor", "scope": "producers"}, [13, 9]),
        ({"name": "taylor", "aggregation": "square_of_sum"}, [10**2, 40**2]),
        ({"name": "taylor", "aggregation": "square_of_sum", "scope": "group"}, [(3 - 2 + 10) ** 2, (-3 + 40) ** 2]),
        ({"name": "level"}, [17, 21]),
    ],
)
def test_scores_worked_by_hand(importance, expected):
    parameters = {"a.weight": WEIGHT, "b.weight": torch.tensor([[10.0, 20.0]])}
    gradients = {"a.weight": GRADIENT, "b.weight": torch.tensor([[1.0, 2.0]])}
    scores = width_scores(parameters, gradients, importance_of(ImportanceSettings(**importance)), (PLAIN,))
    assert scores["a"].tolist() == pytest.approx(expected)


def test_a_flattened_map_gives_each_channel_all_its_columns():
    width = Width(
        "c", 2, (Slot("c", 0, np.array([[0], [1]]), "output"), Slot("f", 1, np.array([[0, 1], [2, 3]]), "input"))
    )
    parameters = {"c": torch.tensor([1.0, 2.0]), "f": torch.tensor([[1.0, 10, 100, 1000]])}
    scores = width_scores(parameters, {}, importance_of(ImportanceSettings(name="l1", scope="group")), (width,))
    assert scores["c"].tolist() == [12, 1102]


def test_blocks_and_elements():
    model, evaluator = ConvNet(), SimpleEvaluator()
    blocks = {"up.weight": (4, 2, 1, 1), "head.weight": (1, 1)}
    with evaluator.bound(model):
        scores = measure(evaluator, IMPORTANCES["l1"], (), blocks, training_steps=1)
    assert scores["up.weight"].shape == (4 * 4,)
    assert scores["up.weight"][5] == pytest.approx(model.up.weight[4:8, 2:4].abs().sum().item(), rel=1e-6)
    np.testing.assert_allclose(scores["head.weight"], model.head.weight.detach().abs().flatten().numpy())


def test_measuring_changes_nothing():
    model, evaluator = ConvNet(), SimpleEvaluator()
    before = copy.deepcopy(model.state_dict())
    widths = widths_of(model)
    with evaluator.bound(model):
        measure(evaluator, IMPORTANCES["taylor"], widths, {}, training_steps=4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not evaluator._before


def test_random_is_seeded_and_uniform_over_the_groups():
    model, evaluator = ConvNet(), SimpleEvaluator()
    widths = widths_of(model)
    with evaluator.bound(model):
        first, second, other = (
            measure(evaluator, IMPORTANCES["random"], widths, {}, training_steps=1, seed=seed) for seed in (3, 3, 4)
        )
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["stem"], other["stem"])


def test_an_importance_of_ones_own_is_one_function():
    model, evaluator = ConvNet(), SimpleEvaluator()
    largest = Importance(lambda weight, gradient: (weight.abs() > 0.1).float(), scope="producers", name="count")
    with evaluator.bound(model):
        scores = measure(evaluator, largest, widths_of(model), {}, training_steps=1)
    assert scores["up"][0] == int((model.up.weight[0].abs() > 0.1).sum())


def test_broken_weights_and_frozen_weights_are_errors():
    model, evaluator = ConvNet(), SimpleEvaluator()
    widths = widths_of(model)
    with evaluator.bound(model):
        with torch.no_grad():
            model.up.weight[3] = float("nan")
        with pytest.raises(JobError, match="scores of up are not finite"):
            measure(evaluator, IMPORTANCES["l1"], widths, {}, training_steps=1)
        for layer in (model.up, model.down):
            layer.requires_grad_(False)
        with pytest.raises(JobError, match="every parameter of up is frozen"):
            measure(evaluator, IMPORTANCES["taylor"], widths, {}, training_steps=1)


def test_sums_taken_in_blocks_are_those_of_the_whole(monkeypatch):
    """Blocks of three, three and one of the seven rows."""
    monkeypatch.setattr(scores, "_BLOCK", 45)
    scored = torch.rand(7, 5, 3, generator=torch.Generator().manual_seed(0))
    for dim, others in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
        found = scores._sums_along(scored, dim)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, scored.double().sum(others), rtol=1e-14, atol=0)
