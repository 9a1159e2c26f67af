"""Thresholds in place of ratios, and competition among layers that are built alike."""

import numpy as np
import pytest
import torch

from nnicompress.errors import InputErrors
from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.models.resnet import resnet20
from nnicompress.pruning.allotment import structure
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.settings import PrunerSettings
from tests.pruning.simple import ConvNet, SimpleEvaluator, digits


def prune(model, target, **settings):
    return Pruner([target], SimpleEvaluator(digits(2, 16)), **settings).compress(model)


def test_weights_below_a_threshold_go():
    model = ConvNet()
    weight = model.head.weight.detach().clone()
    target = {"op_names": ["head"], "sparse_threshold": 0.03}
    result = prune(model, target, importance="level", granularity="element")
    assert torch.equal(model.head.weight != 0, weight.abs() >= 0.03)
    count = int((weight.abs() < 0.03).sum())
    assert 100 < count < 1000
    assert result.totals["weights"].removed == pytest.approx(result.totals["weights"].asked) == count


def test_channels_below_a_threshold_go():
    model = ConvNet()
    norms = model.up.weight.detach().abs().sum((1, 2, 3))
    threshold = float(norms.sort().values[4:6].mean())
    target = {"op_names": ["up"], "sparse_threshold": threshold}
    result = prune(model, target, importance="l1", allocation={"round_to": 1})
    assert result.removal["up"].tolist() == sorted(norms.argsort()[:5].tolist())


def test_a_threshold_comes_in_with_the_schedule():
    schedule = {"name": "linear", "total_times": 2, "interval_steps": 1}
    target = {"op_names": ["head"], "sparse_threshold": 1e9, "max_sparse_ratio": 0.75}
    result = prune(ConvNet(), target, importance="level", granularity="element", schedule=schedule)
    assert result.totals["weights"].removed_ratio == 0.75


@pytest.mark.parametrize(
    ("target", "settings", "line"),
    [
        ({"sparse_ratio": 0.5}, {}, "sparse_ratio and sparse_threshold both say what to remove; set one of them to"),
        ({}, {"allocation": "global"}, "has a sparse_threshold, which leaves nothing for allocation global to decide"),
        ({}, {"target": {"macs": 0.5}}, "has a sparse_threshold, which leaves nothing for target to decide"),
        ({}, {"granularity": "2:4"}, "targets.0 is 2:4, a sparse_ratio of 0.5"),
    ],
)
def test_what_a_threshold_does_not_go_with(target, settings, line):
    with pytest.raises(InputErrors) as caught:
        PrunerSettings.from_targets([{"op_types": ["Conv2d"], "sparse_threshold": 0.1, **target}], **settings)
    assert line in str(caught.value)


def test_the_blocks_of_a_resnet_are_built_alike_and_its_streams_are_not():
    model = resnet20(10, 1, 8)
    widths = find_channel_groups(capture(model, (torch.rand(2, 1, 8, 8),))).widths
    inner = {structure(model, width) for width in widths if width.name.endswith(".conv1")}
    streams = [structure(model, width) for width in widths if not width.name.endswith(".conv1")]
    assert len(inner) == 1 and len(streams) == 3 and len(set(streams)) == 3 and not inner & set(streams)


def test_isomorphic_layers_compete_and_others_lose_their_own_share():
    torch.manual_seed(0)
    model = resnet20(10, 1, 16)
    with torch.no_grad():
        model.layer1[0].conv1.weight.mul_(0.1)
    result = prune(
        model, {"op_types": ["Conv2d"], "sparse_ratio": 0.5}, importance="l1",
        allocation={"name": "isomorphic", "normalize": "none", "round_to": 1},
    )  # fmt: skip
    inner = {row.name: row.removed / row.size for row in result.rows if row.name.endswith(".conv1")}
    streams = [row.removed / row.size for row in result.rows if not row.name.endswith(".conv1")]
    assert inner["layer1.0.conv1"] == max(inner.values()) >= 0.9
    sizes = {row.name: row.size for row in result.rows}
    removed = sum(ratio * sizes[name] for name, ratio in inner.items())
    assert removed == pytest.approx(0.5 * sum(sizes[name] for name in inner), abs=1)
    np.testing.assert_allclose(streams, 0.5)
