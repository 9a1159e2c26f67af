"""Budgets: what remains is counted on the shrunk model, and the least that meets the budget is removed."""

import pytest
import torch
from torch import nn

from nnicompress.errors import ConfigError, InputErrors
from nnicompress.graph.macs import count_macs
from nnicompress.measure.size import count_parameters
from nnicompress.models.resnet import resnet20
from nnicompress.pruning.budget import LayerTable, scales_around
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.settings import PrunerSettings
from nnicompress.shrink.surgery import shrink
from tests.pruning.simple import ConvNet, SimpleEvaluator, digits

CONVS = {"op_types": ["Conv2d"]}
INPUTS = (torch.rand(1, 1, 8, 8),)


def pruned(model, targets, listener=lambda event: None, **settings):
    pruner = Pruner(targets, SimpleEvaluator(digits(2, 16)), listener, importance="l1", **settings)
    result = pruner.compress(model)
    return result, shrink(model, result.groups, result.removal)


@pytest.mark.parametrize("allocation", ["uniform", "global", "isomorphic"])
@pytest.mark.parametrize("goal", [0.5, 0.25])
def test_half_and_a_quarter_of_the_macs(allocation, goal):
    torch.manual_seed(0)
    model = resnet20(10, 1, 16)
    whole = count_macs(model, INPUTS).total
    _, compact = pruned(model, [CONVS], allocation={"name": allocation, "round_to": 1}, target={"macs": goal})
    # One channel of the first stream, which six layers share, is an eightieth part.
    assert goal - 0.02 < count_macs(compact, INPUTS).total / whole <= goal


@pytest.mark.parametrize("allocation", ["uniform", "global", "isomorphic"])
@pytest.mark.parametrize("goal", [0.5, 0.25])
def test_widths_that_are_rounded_alike_lose_their_next_step_one_after_the_other(allocation, goal):
    """All of them at once are a tenth of the network."""
    torch.manual_seed(0)
    model = resnet20(10, 1, 16)
    whole = count_macs(model, INPUTS).total
    result, compact = pruned(model, [CONVS], allocation={"name": allocation}, target={"macs": goal})
    assert goal - 0.03 < count_macs(compact, INPUTS).total / whole <= goal
    assert all((row.size - row.removed) % (row.size // 8) == 0 for row in result.rows)


def test_half_of_the_parameters():
    torch.manual_seed(0)
    model = resnet20(10, 1, 16)
    notes = []
    _, compact = pruned(model, [CONVS], notes.append, target={"params": 0.5}, allocation={"round_to": 1})
    remaining = count_parameters(compact) / count_parameters(model)
    assert 0.48 < remaining <= 0.5
    assert any(f"{remaining:.1%} of the params remain (asked: 50.0%)" in note.text for note in notes)


def test_a_schedule_comes_down_to_the_budget_step_by_step():
    torch.manual_seed(0)
    model = ConvNet(16, 64)
    notes = []
    schedule = {"name": "linear", "total_times": 2, "interval_steps": 2}
    _, compact = pruned(
        model, [CONVS], notes.append, target={"macs": 0.5}, schedule=schedule, allocation={"round_to": 1}
    )  # fmt: skip
    texts = [note.text for note in notes if "remain" in note.text]
    assert [text.partition("asked: ")[2] for text in texts] == ["75.0%)", "50.0%)"]
    assert count_macs(compact, INPUTS).total <= 0.5 * count_macs(model, INPUTS).total


def test_what_a_budget_needs_is_what_is_asked_whatever_went_before():
    torch.manual_seed(0)
    schedule = {"name": "agp", "total_times": 4, "interval_steps": 1}
    result, _ = pruned(resnet20(10, 1, 16), [CONVS], target={"macs": 0.5}, schedule=schedule)
    total = result.totals["channels"]
    assert total.asked_ratio == total.removed_ratio > 0.2
    assert [row.name for row in result.rows if row.asked < row.removed - row.size / 8] == []


def test_ratios_stand_in_the_proportion_of_the_settings():
    torch.manual_seed(0)
    targets = [{"op_names": ["up"], "sparse_ratio": 0.8}, {"op_names": ["stem", "down"], "sparse_ratio": 0.4}]
    result, _ = pruned(ConvNet(64, 64), targets, target={"params": 0.6}, allocation={"round_to": 1})
    ratios = {row.name: row.removed / row.size for row in result.rows}
    assert ratios["up"] == pytest.approx(2 * ratios["stem"], abs=1 / 64)


def test_a_budget_out_of_reach_says_what_remains():
    targets = [{**CONVS, "max_sparse_ratio": 0.25}]
    with pytest.raises(
        ConfigError, match=r"target\.macs: 0\.1 of the macs can't be reached: .* 0\.\d+ remains; select"
    ):
        pruned(ConvNet(), targets, target={"macs": 0.1})


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_the_goal_is_met_between_two_neighbouring_scales(threshold):
    low, high = scales_around(lambda scale: 0.2 if scale >= threshold else 1.0, 0.3, kind="macs")
    assert low < threshold <= high == low + 1 / 4096


def test_the_table_measures_each_layer_at_each_shape_once():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    table = LayerTable((INPUTS, {}))
    seconds = table.seconds(model)
    assert len(table.table) == 3  # two kinds of convolution and one activation, at one shape
    kinds = {key[0]: key for key in table.table}
    by_hand = {key: value for key, value in table.table.items()}
    conv1 = next(value for key, value in by_hand.items() if "Conv2d(1" in f"Conv2d({key[1]}")
    conv4 = next(value for key, value in by_hand.items() if "Conv2d(4" in f"Conv2d({key[1]}")
    assert seconds == pytest.approx(conv1 + 2 * conv4 + 2 * by_hand[kinds[nn.ReLU]])
    assert table.seconds(model) == seconds
    assert not any(module._forward_pre_hooks for module in model)


def test_a_budget_of_latency_is_met_on_the_table():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.Flatten())
    model.append(nn.Linear(128 * 64, 10))
    notes = []
    _, compact = pruned(model, [CONVS], notes.append, target={"latency": 0.7})
    (text,) = [note.text for note in notes if "remain" in note.text]
    assert float(text.partition("%")[0]) <= 70.0
    assert count_parameters(compact) < count_parameters(model)


@pytest.mark.parametrize(
    ("target", "settings", "line"),
    [
        ({"macs": 0.5, "params": 0.5}, {}, "exactly one of macs, params and latency is given, not macs and params"),
        ({}, {}, "exactly one of macs, params and latency is given, not none"),
        ({"macs": 1.0}, {}, "target.macs: 1 is outside (0, 1)"),
        ({"flops": 0.5}, {}, "target.flops: unknown key"),
        ({"mac": 0.5}, {}, "target.mac: unknown key; did you mean 'macs'"),
        ({"macs": 0.5}, {"granularity": "element"}, "target is a size of the shrunk model, and targets.0 only masks"),
    ],
)
def test_wrong_budgets(target, settings, line):
    with pytest.raises(InputErrors) as caught:
        PrunerSettings.from_targets([CONVS], target=target, **settings)
    assert line in str(caught.value)
