"""The settings: shorthand, merging, and what is refused in which words."""

import subprocess
import sys

import pytest

from nnicompress.errors import InputErrors
from nnicompress.pruning.importance import IMPORTANCES
from nnicompress.pruning.settings import IMPORTANCE_NAMES, PrunerSettings

CONVS = {"op_types": ["Conv2d"], "sparse_ratio": 0.4}


def test_a_list_of_dicts_becomes_named_targets():
    settings = PrunerSettings.from_targets(
        [CONVS, {"op_names": "head", "sparse_ratio": 0.1}], importance="l1", allocation="global"
    )
    assert list(settings.targets) == ["0", "1"]
    assert settings.targets["1"].op_names == ("head",)
    assert (settings.importance.name, settings.allocation.name, settings.schedule.name) == ("l1", "global", "one_shot")


def test_the_names_of_importances_are_those_of_the_registry():
    assert set(IMPORTANCE_NAMES) == set(IMPORTANCES)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sparse_ratio": 7.5}, "targets.0.sparse_ratio: 7.5 is outside [0, 1)"),
        ({"sparse_ratio": 1}, "targets.0.sparse_ratio: 1 is outside [0, 1)"),
        ({"sparse_ratio": -0.1}, "targets.0.sparse_ratio: -0.1 is outside [0, 1)"),
        ({"sparse_ratio": None}, "targets.0: sparse_ratio is missing"),
        ({"sparse_ratoi": 0.5}, "targets.0.sparse_ratoi: unknown key; did you mean 'sparse_ratio'"),
        ({"max_sparse_ratio": 0.3}, "targets.0: sparse_ratio 0.4 is above max_sparse_ratio 0.3"),
        ({"min_sparse_ratio": 0.5}, "targets.0: min_sparse_ratio 0.5 is above sparse_ratio 0.4"),
        ({"max_sparse_ratio": 1.5}, "targets.0.max_sparse_ratio: 1.5 is outside [0, 1]"),
        ({"op_types": []}, "targets.0: a target needs op_types, op_names or op_names_re"),
        ({"op_names_re": ["layer["]}, "targets.0.op_names_re: 'layer[' is not a regular expression"),
        ({"granularity": "output_chanel"}, "no granularity named 'output_chanel'; did you mean 'output_channel'"),
        ({"granularity": [0, 4]}, "targets.0.granularity: [0, 4] is not a block"),
        ({"target_settings": {"wieght": {}}}, "target_settings has 'wieght', which is not in target_names"),
        (
            {"target_settings": {"weight": {"max_sparse_ratio": 0.1}}},
            "target_settings.weight: sparse_ratio 0.4 is above max_sparse_ratio 0.1",
        ),
        ({"global_group_id": 1}, "which needs allocation: {name: global}"),
        ({"granularity": "element", "dependency_group_id": 1}, "which only channel granularities take"),
    ],
)
def test_wrong_targets_are_refused_in_plain_words(changes, line):
    with pytest.raises(InputErrors) as caught:
        PrunerSettings.from_targets([{**CONVS, **changes}])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        ("Conv2d", """targets: 'Conv2d' is no list of targets; give [{"op_types": ["Conv2d"]}]"""),
        (["Conv2d"], """targets.0: 'Conv2d' is no dict of settings; give {"op_types": ["Conv2d"]}"""),
    ],
)
def test_targets_that_are_no_list_of_dicts_are_refused_in_plain_words(targets, line):
    with pytest.raises(InputErrors) as caught:
        PrunerSettings.from_targets(targets)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"importance": "tailor"}, "importance: no importance named 'tailor'; did you mean 'taylor'"),
        ({"importance": {"name": "taylor", "training_steps": 0}}, "importance.training_steps: 0 is below 1"),
        ({"schedule": "agp"}, "schedule: agp needs total_times and interval_steps"),
        (
            {"schedule": {"total_times": 3}},
            "schedule: one_shot takes no total_times; linear, agp and lottery_ticket do",
        ),
        ({"allocation": {"round_to": 0}}, "0 is below 1"),
        ({"sede": 1}, "sede: unknown key"),
    ],
)
def test_other_wrong_settings(settings, line):
    with pytest.raises(InputErrors) as caught:
        PrunerSettings.from_targets([CONVS], **settings)
    assert line in str(caught.value)


def test_all_errors_are_shown_at_once():
    with pytest.raises(InputErrors) as caught:
        PrunerSettings.from_targets([{**CONVS, "sparse_ratio": 2}, {**CONVS, "op_tpyes": []}], importance="l3")
    assert len(caught.value.errors) == 3


def test_no_targets():
    with pytest.raises(InputErrors, match="a pruner needs at least one"):
        PrunerSettings.from_targets([])


def test_target_settings_replace_only_the_keys_they_give():
    settings = PrunerSettings.from_targets(
        [{**CONVS, "max_sparse_ratio": 0.8, "target_names": ["weight", "bias"], "granularity": "element",
          "target_settings": {"bias": {"sparse_ratio": 0.1}}}]
    )  # fmt: skip
    weight, bias = (settings.targets["0"].of_tensor(name) for name in ("weight", "bias"))
    assert (weight.sparse_ratio, bias.sparse_ratio) == (0.4, 0.1)
    assert (bias.max_sparse_ratio, bias.granularity) == (0.8, "element")


def test_importing_the_settings_imports_neither_torch_nor_hydra():
    code = "import sys, nnicompress.pruning.settings; print({'torch', 'hydra', 'omegaconf'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
