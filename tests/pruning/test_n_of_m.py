"""N:M and ranking within an output, against plain loops over the weight."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from nnicompress.errors import ConfigError, InputErrors
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.settings import PrunerSettings
from tests.pruning.simple import ConvNet, SimpleEvaluator

LAYERS = {"op_names": ["up", "head"]}


def prune(model, target, **settings):
    return Pruner([target], SimpleEvaluator(), importance=settings.pop("importance", "level"), **settings).compress(
        model
    )


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_the_largest_n_of_every_m_input_weights_stay(kept, of):
    model = ConvNet()
    before = {name: model.get_submodule(name).weight.detach().clone() for name in ("up", "head")}
    result = prune(model, LAYERS, granularity=f"{kept}:{of}")
    for name, weight in before.items():
        after = model.get_submodule(name).weight.detach()
        for row in range(weight.shape[0]):
            for start in range(0, weight.shape[1], of):
                group = weight[row, start : start + of].flatten()
                largest = group.abs().argsort(descending=True)[:kept].sort().values
                assert torch.equal(after[row, start : start + of].flatten().nonzero().flatten(), largest)
                assert torch.equal(after[row, start : start + of].flatten()[largest], group[largest])
    total = result.totals["weights"]
    assert total.removed == total.asked == total.size * (1 - kept / of)
    assert result.masks_only and result.reasons == ()


def test_each_place_of_a_kernel_is_a_group_of_its_own():
    model = nn.Sequential(nn.Conv2d(8, 3, 3))
    prune(model, {"op_types": ["Conv2d"]}, granularity="2:4")
    counts = (model[0].weight != 0).view(3, 2, 4, 3, 3).sum(2)
    assert bool((counts == 2).all())


def test_wanda_ranks_the_weights_of_each_output():
    """Half of each row, not half of the tensor: a row of small weights keeps as many as another."""
    model = ConvNet()
    with torch.no_grad():
        model.head.weight[0] *= 1e-3
    prune(
        model, {"op_names": ["head"], "sparse_ratio": 0.5}, importance={"name": "wanda", "training_steps": 2},
        granularity="element", allocation={"within": "output"},
    )  # fmt: skip
    assert (model.head.weight != 0).sum(1).tolist() == [64] * 10


TRANSPOSED = {
    "Conv1D": (Conv1D(6, 8), 1),
    "transposed": (nn.ConvTranspose2d(8, 6, 3), 1),
    "transposed, grouped": (nn.ConvTranspose2d(8, 6, 1, groups=2), 2),
}
"""Layers whose weight has its inputs first, and the groups of them."""


@pytest.mark.parametrize("name", TRANSPOSED)
def test_weights_that_lie_the_other_way_are_ranked_for_each_output_too(name):
    layer, groups = copy.deepcopy(TRANSPOSED[name])
    before = layer.weight.detach().clone()
    model = nn.Sequential(layer)
    prune(
        model, {"op_names": ["0"], "sparse_ratio": 0.5}, granularity="element", allocation={"within": "output"}
    )  # fmt: skip
    per_group = before.shape[0] // groups
    for group in range(groups):
        rows = slice(group * per_group, (group + 1) * per_group)
        for column in range(before.shape[1]):
            old, new = before[rows, column].flatten(), layer.weight[rows, column].flatten()
            largest = old.abs().argsort(descending=True)[: len(old) // 2].sort().values
            assert torch.equal(new.nonzero().flatten(), largest)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_two_of_four_inputs_where_the_weight_lies_the_other_way(name):
    model = nn.Sequential(copy.deepcopy(TRANSPOSED[name][0]))
    prune(model, {"op_names": ["0"]}, granularity="2:4")
    kept = (model[0].weight != 0).flatten(1)
    assert bool((kept.view(2, 4, -1).sum(1) == 2).all())


def test_what_was_removed_within_an_output_stays_removed():
    model = ConvNet()
    result = prune(
        model, {"op_names": ["head"], "sparse_ratio": 0.75}, granularity="element", allocation={"within": "output"},
        schedule={"name": "linear", "total_times": 3, "interval_steps": 4},
    )  # fmt: skip
    assert (model.head.weight != 0).sum(1).tolist() == [32] * 10
    assert result.totals["weights"].removed == 960


@pytest.mark.parametrize(
    ("granularity", "names", "line"),
    [
        ("2:4", "stem", "2:4 needs a multiple of 4 input channels, and stem.weight has 1 input channels"),
        ("2:4", "bn", "2:4 needs a multiple of 4 input channels, and bn.weight has no input channels"),
        ("1:3", "up", "1:3 needs a multiple of 3 input channels, and up.weight has 8 input channels"),
    ],
)
def test_a_tensor_that_does_not_divide_is_named(granularity, names, line):
    with pytest.raises(ConfigError, match=line):
        prune(ConvNet(), {"op_names": names}, granularity=granularity)


@pytest.mark.parametrize(
    ("target", "settings", "line"),
    [
        ({}, {"granularity": "4:4"}, "4:4 removes nothing: it keeps 4 of every 4 weights"),
        ({}, {"granularity": "2:"}, "no granularity named '2:'"),
        (
            {},
            {"granularity": 124},
            "124 is no granularity; known: element, output_channel, input_channel, heads, head_dim, ffn, hidden",
        ),
        ({"sparse_ratio": 0.3}, {"granularity": "2:4"}, "targets.0 is 2:4, a sparse_ratio of 0.5: leave"),
        ({}, {"granularity": "2:4", "allocation": "global"}, "schedule is one_shot, allocation uniform"),
        (
            {},
            {"granularity": "2:4", "schedule": {"name": "agp", "total_times": 2, "interval_steps": 1}},
            "schedule is one_shot, allocation uniform",
        ),
        ({"sparse_ratio": 0.5}, {"allocation": {"within": "output"}}, "within: output needs granularity: element"),
        ({"sparse_ratio": 0.5}, {"allocation": {"within": "row"}}, "allocation.within"),
        ({}, {"granularity": "2:4", "importance": "fpgm"}, "fpgm scores whole channels"),
    ],
)
def test_what_does_not_go_together_is_refused(target, settings, line):
    with pytest.raises(InputErrors) as caught:
        PrunerSettings.from_targets([{**LAYERS, **target}], **settings)
    assert line in str(caught.value)
