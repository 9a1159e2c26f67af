"""The shipped importances against numbers worked by hand, and against autograd where they claim a derivative."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nnicompress.errors import InputErrors, JobError
from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.graph.widths import Slot, Width
from nnicompress.pruning.importance import IMPORTANCES, distances, lamp
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.scores import measure, width_scores
from nnicompress.pruning.settings import PrunerSettings
from tests.pruning.simple import ConvNet, SimpleEvaluator, digits


def widths_of(model):
    return find_channel_groups(capture(model, (digits(1, 2)[0][0],))).widths


def scores_of(name, model, batches=None, **more):
    evaluator = SimpleEvaluator(digits(2) if batches is None else batches)
    with evaluator.bound(model):
        return measure(evaluator, IMPORTANCES[name], widths_of(model), {}, training_steps=2, **more)


def test_distances_worked_by_hand():
    """A 3-4-5 triangle: 0 is 5 from 1 and 4 from 2; 1 is 3 from 2."""
    rows = torch.tensor([[0.0, 1.0], [3.0, 5.0], [0.0, 5.0]])
    assert distances(rows).tolist() == [5 + 4, 5 + 3, 4 + 3]


def test_rows_of_zeros_are_no_points_of_the_median():
    rows = torch.tensor([[0.0, 1.0], [0.0, 0.0], [3.0, 5.0], [0.0, 5.0]])
    assert distances(rows).tolist() == [9, 0, 8, 7]


def test_fpgm_of_a_width_is_the_distance_of_all_that_produces_a_channel():
    """Two layers produce the channels: a channel is the point of both layers' filters."""
    indices = np.array([[0], [1], [2]])
    width = Width("a", 3, (Slot("a", 0, indices, "output"), Slot("b", 0, indices, "output")))
    parameters = {"a": torch.tensor([[0.0], [3.0], [0.0]]), "b": torch.tensor([[1.0], [5.0], [5.0]])}
    assert width_scores(parameters, {}, IMPORTANCES["fpgm"], (width,))["a"].tolist() == [9, 8, 7]


def test_fpgm_removes_the_filter_that_others_replace_where_l1_removes_the_small_one():
    model = ConvNet(width=8, inner=4)
    with torch.no_grad():
        for channel, value in enumerate((1.0, 10.0, 10.5, 30.0)):
            model.up.weight[channel] = value
    removed = {}
    for name in ("l1", "fpgm"):
        pruner = Pruner(
            [{"op_names": ["up"], "sparse_ratio": 0.25}], SimpleEvaluator(), importance=name,
            allocation={"name": "uniform", "round_to": 1},
        )  # fmt: skip
        removed[name] = pruner.compress(copy.deepcopy(model)).removal["up"].tolist()
    # Sums of distances on the line: 9 + 9.5 + 29, 9 + 0.5 + 20, 9.5 + 0.5 + 19.5, 29 + 20 + 19.5.
    assert removed["l1"] == [0] and removed["fpgm"] in ([1], [2])


def test_lamp_worked_by_hand():
    # Squares 9, 1, 4, 0: behind the largest stand 9 of 9, 4 of 13, 1 of 14.
    assert lamp(torch.tensor([9.0, 1.0, 4.0, 0.0])).tolist() == pytest.approx([1, 1 / 14, 4 / 13, 0])
    assert lamp(torch.zeros(3)).tolist() == [0, 0, 0]


def test_lamp_makes_layers_of_other_scales_compete():
    """As magnitudes alone, all of the smaller layer would go."""
    model = ConvNet()
    with torch.no_grad():
        model.up.weight.mul_(1e-3)
    targets = [{"op_names": ["up", "head"], "sparse_ratio": 0.5}]

    def density(importance):
        pruned = copy.deepcopy(model)
        Pruner(
            targets, SimpleEvaluator(), importance=importance, granularity="element", allocation="global"
        ).compress(pruned)  # fmt: skip
        return float((pruned.up.weight != 0).float().mean())

    assert density("level") < 0.01
    assert density("lamp") > 0.5


def test_slim_is_the_scale_of_the_batch_norm():
    model = ConvNet()
    with torch.no_grad():
        model.bn.weight.copy_(torch.linspace(-1, 1, 8)), model.bn.bias.fill_(100.0)
    evaluator = SimpleEvaluator()
    stem = tuple(width for width in widths_of(model) if width.name == "stem")
    with evaluator.bound(model):
        scores = measure(evaluator, IMPORTANCES["slim"], stem, {}, training_steps=1)
    np.testing.assert_allclose(scores["stem"], np.abs(np.linspace(-1, 1, 8)), rtol=1e-6)


@pytest.mark.parametrize("name", ["slim", "taylor_bn"])
def test_a_layer_without_a_norm_is_named(name):
    with pytest.raises(JobError, match=f"{name} scores the norm behind a layer, and up has none: exclude it"):
        scores_of(name, ConvNet())


def test_taylor_on_batch_norm_is_the_squared_derivative_by_a_gate_behind_it():
    torch.manual_seed(1)
    model, batches = ConvNet(), digits(2)
    with torch.no_grad():
        model.bn.weight.uniform_(0.5, 1.5), model.bn.bias.uniform_(-0.5, 0.5)
    evaluator = SimpleEvaluator(batches)
    stem = tuple(width for width in widths_of(model) if width.name == "stem")
    with evaluator.bound(model):
        scores = measure(evaluator, IMPORTANCES["taylor_bn"], stem, {}, training_steps=2)["stem"]
    reference = copy.deepcopy(model).double().eval()
    expected = torch.zeros(8, dtype=torch.float64)
    for inputs, targets in batches:
        gate = torch.ones(8, dtype=torch.float64, requires_grad=True)
        handle = reference.bn.register_forward_hook(lambda module, args, out, gate=gate: out * gate.view(1, -1, 1, 1))
        loss = nn.functional.cross_entropy(reference(inputs.double()), targets)
        handle.remove()
        expected += torch.autograd.grad(loss, gate)[0] ** 2 / len(batches)
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4, atol=1e-7 * float(expected.max()))


@pytest.mark.parametrize("name", ["fpgm", "slim", "taylor_bn", "apoz", "mean_activation"])
def test_what_scores_channels_refuses_single_weights(name):
    with pytest.raises(InputErrors, match=f"{name} scores whole channels, and targets.0 has granularity element"):
        PrunerSettings.from_targets(
            [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], importance=name, granularity="element"
        )


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"name": "l1", "regular_scale": 0.1}, "l1 takes no regular_scale; slim, soft_movement do"),
        ({"name": "slim", "regular_scale": -1}, "-1 is not a number of at least 0"),
        ({"name": "soft_movement", "score_rate": 0}, "0 is not a number above 0"),
        ({"name": "movement", "score_rate": 2}, "movement takes no score_rate; soft_movement does"),
        ({"name": "apoz", "scope": "group"}, "apoz takes no scope"),
        ({"name": "l2", "seed": 1}, "l2 takes no seed; random does"),
        ({"name": "fpmg"}, "no importance named 'fpmg'; did you mean 'fpgm'"),
        ({"name": "slimm"}, "did you mean 'slim'"),
        ({"name": "lamp", "aggregation": "square_of_sum"}, "lamp takes no aggregation; taylor does"),
    ],
)
def test_keys_that_an_importance_does_not_take_are_refused(settings, line):
    with pytest.raises(InputErrors) as caught:
        PrunerSettings.from_targets([{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], importance=settings)
    assert line in str(caught.value)
