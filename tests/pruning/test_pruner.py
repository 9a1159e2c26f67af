"""The pruner as a whole, on real networks and images: what it removes, what it refuses, what it says."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import ConfigError, InputErrors, NothingPrunedError, UserError
from nnicompress.events import Note
from nnicompress.graph.widths import ChannelGroups
from nnicompress.models.mobilenet_v2 import mobilenet_v2
from nnicompress.models.resnet import resnet20
from nnicompress.pruning.importance import Importance
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.settings import PrunerSettings
from tests.pruning.simple import ConvNet, SimpleEvaluator, digits

HALF = {"op_types": ["Conv2d"], "sparse_ratio": 0.5}


GROUPS: dict[str, ChannelGroups] = {}


def prune(model, targets, **settings):
    """Prune with the channel groups of an equal model, where they were found before."""
    pruner, key = Pruner(targets, SimpleEvaluator(digits(2, 16)), **settings), str(model)
    result = pruner.compress(model, GROUPS.get(key) if pruner.settings.prunes_channels else None)
    if result.groups is not None:
        GROUPS[key] = result.groups
    return result


def density(model, name):
    parameter = model.get_parameter(name)
    return float((parameter != 0).float().mean())


@pytest.mark.parametrize("importance", ["taylor", "l1", "l2", "level", "random"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_40_percent_of_resnet20_within_half_a_step(importance, allocation):
    result = prune(
        resnet20(10, 1, 16), [{"op_types": ["Conv2d"], "sparse_ratio": 0.4}], importance=importance,
        allocation=allocation,
    )  # fmt: skip
    total = result.totals["channels"]
    # By hand: stem 16; 6 + 6 + 6 convolutions of 16, 32, 64; two shortcuts of 32 and 64.
    assert total.size == 16 + 6 * (16 + 32 + 64) + 32 + 64
    cheapest_step = 2  # a width of 16 that one layer alone has
    if allocation == "global":
        assert abs(total.removed - total.asked) <= cheapest_step / 2
    else:
        assert abs(total.removed - total.asked) <= 8 * 4 / 2
    for row in result.rows:
        assert row.kept % (row.size // 8) == 0
        assert row.kept >= 1
    assert not result.masks_only


def test_l1_keeps_the_filters_with_the_largest_norms():
    model = ConvNet()
    norms = model.up.weight.detach().abs().sum((1, 2, 3))
    result = prune(model, [{"op_names": ["up"], "sparse_ratio": 0.25}], importance="l1")
    assert result.removal["up"].tolist() == sorted(norms.argsort()[:4].tolist())
    assert list(result.removal) == ["up"]
    assert model.up.weight[result.removal["up"]].count_nonzero() == 0
    assert model.down.weight[:, result.removal["up"]].count_nonzero() == 0


def test_taylor_removes_the_channels_that_do_nothing():
    torch.manual_seed(0)
    model = ConvNet()
    with torch.no_grad():
        model.down.weight[:, [1, 5, 9, 13]] = 0
        model.up.weight[[1, 5, 9, 13]] *= 100  # what a norm would keep
        model.up.bias.fill_(5.0)  # no other channel is dead
    reference, inputs = copy.deepcopy(model).eval(), digits(1)[0][0]
    result = prune(
        model, [{"op_names": ["up"], "sparse_ratio": 0.25}],
        importance={"name": "taylor", "aggregation": "square_of_sum"},
    )  # fmt: skip
    assert result.removal["up"].tolist() == [1, 5, 9, 13]
    torch.testing.assert_close(model.eval()(inputs), reference(inputs))


def test_input_channels():
    """`down` consumes the width that `up` produces; the channels of `head`'s inputs are those of the stem."""
    result = prune(ConvNet(), [{"op_names": ["down"], "sparse_ratio": 0.25}], granularity="input_channel")
    assert list(result.removal) == ["up"]
    flattened = prune(ConvNet(), [{"op_names": ["head"], "sparse_ratio": 0.25}], granularity="input_channel")
    assert list(flattened.removal) == ["stem"]
    assert flattened.totals["channels"].size == 128  # the inputs of the linear layer


def test_elements_uniform_and_global():
    model = ConvNet()
    weights = [model.up.weight.detach().clone(), model.head.weight.detach().clone()]
    targets = [{"op_names": ["up", "head"], "sparse_ratio": 0.5}]
    result = prune(model, targets, importance="level", granularity="element")
    assert density(model, "up.weight") == density(model, "head.weight") == 0.5
    cut = weights[1].abs().flatten().kthvalue(640).values
    assert torch.equal(model.head.weight != 0, weights[1].abs() > cut)
    assert result.masks_only and result.groups is None and result.removal == {}
    assert result.totals["weights"].removed == 64 + 640

    with torch.no_grad():
        model.up.weight.copy_(weights[0]), model.head.weight.copy_(weights[1])
    prune(model, targets, importance="level", granularity="element", allocation="global")
    cut = torch.cat([w.abs().flatten() for w in weights]).kthvalue(704).values
    assert torch.equal(model.up.weight != 0, weights[0].abs() > cut)
    assert torch.equal(model.head.weight != 0, weights[1].abs() > cut)


def test_blocks():
    model = ConvNet()
    result = prune(model, [{"op_names": ["head"], "sparse_ratio": 0.5}], importance="l2", granularity=[5, 16])
    blocks = (model.head.weight != 0).view(2, 5, 8, 16).transpose(1, 2).reshape(16, -1)
    assert sorted(blocks.float().mean(1).tolist()) == [0.0] * 8 + [1.0] * 8
    assert result.totals["weights"].removed == 640


def test_bias_targets_have_settings_of_their_own():
    model = ConvNet()
    target = {"op_names": ["head"], "sparse_ratio": 0.5, "target_names": ["weight", "bias"]}
    prune(
        model, [{**target, "target_settings": {"bias": {"sparse_ratio": 0.2}}}], importance="level",
        granularity="element",
    )  # fmt: skip
    assert density(model, "head.weight") == 0.5
    assert density(model, "head.bias") == pytest.approx(0.8)


def test_bounds_of_each_width_hold_in_the_competition():
    result = prune(
        resnet20(10, 1, 16), [{**HALF, "min_sparse_ratio": 0.25, "max_sparse_ratio": 0.625}], allocation="global"
    )
    assert all(0.25 * row.size <= row.removed <= 0.625 * row.size for row in result.rows)


def test_a_width_of_an_excluded_module_stays_and_the_reason_is_given():
    notes: list[Note] = []
    model = resnet20(10, 1, 16)
    pruner = Pruner(
        [{**HALF, "exclude_op_names": ["layer3.2.conv2"]}], SimpleEvaluator(), notes.append, importance="l1"
    )
    result = pruner.compress(model)
    assert "layer3.0.conv2" not in result.removal
    line = (
        "layer3.0.conv2: 64 of 64 channels can't be pruned: shares its channels with layer3.2.conv2, which is excluded"
    )
    assert line in result.unprunable
    assert line in result.reasons
    assert any(note.warning and "less than asked" in note.text for note in notes)
    assert any("pruned" in note.text and not note.warning for note in notes)


def test_outputs_of_the_model_stay_and_the_reason_is_given():
    result = prune(ConvNet(), [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}], importance="l1")
    assert result.unprunable == ("head: 10 of 10 channels can't be pruned: it is an output of the model",)


def test_nothing_pruned_is_an_error_that_says_why():
    with pytest.raises(NothingPrunedError, match="nothing was pruned: head: 10 of 10 channels.*output of the model"):
        prune(ConvNet(), [{"op_names": ["head"], "sparse_ratio": 0.5}], importance="l1")
    with pytest.raises(NothingPrunedError, match="nothing was pruned"):
        prune(ConvNet(), [{"op_names": ["up"], "sparse_ratio": 0.01}], importance="l1")
    assert prune(ConvNet(), [{"op_names": ["up"], "sparse_ratio": 0.0}], importance="l1").removal == {}


def test_targets_that_share_a_width_must_agree():
    model = resnet20(10, 1, 16)
    targets = [
        {"op_names_re": [r"layer1\.\d\.conv2"], "sparse_ratio": 0.5},
        {"op_names": ["conv1"], "sparse_ratio": 0.25},
    ]
    with pytest.raises(ConfigError) as caught:
        prune(model, targets, importance="l1")
    message = str(caught.value)
    assert message.startswith("targets.1.sparse_ratio: asks for 0.25 of conv1, and targets.0 for 0.5 of layer1.0.conv2")
    targets[1]["sparse_ratio"] = 0.5
    row = prune(model, targets, importance="l1").rows[0]
    assert (row.name, row.size, row.removed) == ("conv1", 16, 8)
    assert row.modules == ("layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2", "conv1")


def test_global_group_ids_let_targets_compete_with_each_other():
    """The weights of `b` are tiny: where both compete, only they are pruned."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.relu(self.a(x.flatten(1))))))

    def removed(**group):
        torch.manual_seed(0)
        model = Two()
        with torch.no_grad():
            model.b.weight *= 1e-3
        targets = [{"op_names": [name], "sparse_ratio": 0.25, **group} for name in ("a", "b")]
        allocation = {"name": "global", "normalize": "none"}
        result = prune(model, targets, importance="l1", allocation=allocation)
        return [len(result.removal.get(name, ())) for name in ("a", "b")]

    assert removed() == [4, 4]
    assert removed(global_group_id="both") == [0, 8]


def test_dependency_groups_lose_the_same_indices():
    model = resnet20(10, 1, 16)
    names = ["layer2.0.conv1", "layer2.1.conv1", "layer2.2.conv1"]
    target = {"op_names": names, "sparse_ratio": 0.5}
    free = prune(copy.deepcopy(model), [target], importance="l1").removal
    assert len({tuple(free[name]) for name in names}) > 1
    tied = prune(copy.deepcopy(model), [{**target, "dependency_group_id": 1}], importance="l1").removal
    assert len({tuple(tied[name]) for name in names}) == 1
    with pytest.raises(ConfigError, match="layer3.0.conv1 has 64 channel groups and layer2.0.conv1 32"):
        prune(
            model, [{"op_names": [*names, "layer3.0.conv1"], "sparse_ratio": 0.5, "dependency_group_id": 1}],
            importance="l1",
        )  # fmt: skip


def test_depthwise_layers_follow_and_masked_networks_stay_finite():
    model = mobilenet_v2(10, 1)
    result = prune(model, [HALF], importance="l1")
    assert result.totals["channels"].removed_ratio == pytest.approx(0.5, abs=0.01)
    assert model.eval()(torch.randn(2, 1, 32, 32)).isfinite().all()


@pytest.mark.parametrize("name", ["linear", "agp"])
def test_schedules_grow_towards_the_same_ratio(name):
    evaluator, sizes = SimpleEvaluator(digits(2, 16)), []
    model = ConvNet(16, 32)
    pruner = Pruner(
        [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], evaluator, lambda event: sizes.append(event.text),
        importance={"name": "taylor", "training_steps": 2}, allocation="global",
        schedule={"name": name, "total_times": 3, "interval_steps": 4},
    )  # fmt: skip
    removals = []
    remove = pruner._remove

    def recorded(*args):
        removed, allotments = remove(*args)
        removals.append(removed)
        return removed, allotments

    pruner._remove = recorded
    result = pruner.compress(model)
    assert evaluator.trainings == [4, 4]
    assert result.totals["channels"].removed_ratio == pytest.approx(0.5, abs=0.05)
    for earlier, later in zip(removals, removals[1:], strict=False):
        for width, indices in earlier.widths.items():
            assert set(indices) <= set(later.widths[width])
    counts = [sum(len(indices) for indices in removed.widths.values()) for removed in removals]
    assert counts[0] < counts[-1] and counts == sorted(counts)
    assert sum(text.startswith("removal ") for text in sizes) == 3
    for tensor, keep in result.masks.keep.items():
        assert model.get_parameter(tensor)[~keep].count_nonzero() == 0


def test_nothing_is_left_on_the_model_or_the_evaluator():
    model, evaluator = ConvNet(), SimpleEvaluator()
    Pruner([HALF], evaluator, importance="taylor").compress(model)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert not any((evaluator._before, evaluator._after, evaluator._evaluate))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_same_seed_gives_the_same_removal():
    first, second = (prune(ConvNet(), [HALF], importance={"name": "random", "seed": 7}).removal for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_an_importance_object_of_ones_own():
    model = ConvNet()
    smallest_first = Importance(lambda weight, gradient: -weight.abs(), scope="producers", name="largest")
    result = prune(model, [{"op_names": ["up"], "sparse_ratio": 0.25}], importance=smallest_first)
    model = ConvNet()
    assert len(result.removal["up"]) == 4


def test_requirements_name_the_compressor_and_the_purpose():
    def needs(**settings):
        return [name for name, _ in Pruner.requirements(PrunerSettings.from_targets([HALF], **settings))]

    assert needs(importance="taylor") == ["example_inputs", "iterate"]
    assert needs(importance="l1") == ["example_inputs"]
    assert needs(importance="level", granularity="element") == []
    assert needs(importance="l1", schedule={"name": "agp", "total_times": 2, "interval_steps": 1})[-1] == "train"

    class NoTraining(SimpleEvaluator):
        capabilities = frozenset({"example_inputs"})

    with pytest.raises(UserError, match="the taylor pruner needs iterate to gather the gradients of taylor importance"):
        Pruner([HALF], NoTraining()).compress(ConvNet())


def test_wrong_dicts_are_input_errors():
    with pytest.raises(InputErrors, match="targets.0.sparse_ratio: 7.5 is outside"):
        Pruner([{"op_types": ["Conv2d"], "sparse_ratio": 7.5}], SimpleEvaluator())
    with pytest.raises(TypeError, match="PrunerSettings already say allocation"):
        Pruner(PrunerSettings.from_targets([HALF]), SimpleEvaluator(), allocation="global")
