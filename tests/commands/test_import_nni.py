"""`nnicompress import-nni`: configurations as NNI's users have them, and the recipes that `check` accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nnicompress.checks.recipe import check_recipe
from nnicompress.cli import main
from nnicompress.config.nni import import_config_list
from nnicompress.errors import ConfigError
from nnicompress.pruning.settings import PrunerSettings

NEW = [
    {
        "op_types": ["Conv2d"],
        "exclude_op_names": ["conv1"],
        "sparse_ratio": 0.5,
        "max_sparse_ratio": 0.8,
        "target_names": ["weight", "bias"],
        "target_settings": {
            "weight": {"granularity": "out_channel"},
            "bias": {"align": {"target_name": "weight", "dims": [0]}},
        },
    }
]
OLD = [
    {"sparsity_per_layer": 0.4, "op_types": ["Conv2d"], "op_partial_names": ["layer2."]},
    {"sparsity": 0.2, "op_names": ["layer3.0.conv1"], "op_types": ["Conv2d"]},
    {"exclude": True, "op_names": ["layer2.0.conv1"]},
]
TOTAL = [{"total_sparsity": 0.5, "max_sparsity_per_layer": 0.7, "op_types": ["Conv2d"]}]


def imported(tmp_path: Path, config: Any, *words: str, name: str = "config.json") -> dict[str, Any]:
    """The recipe that was written, after `check` has accepted it."""
    source, recipe = tmp_path / name, tmp_path / "mine.yaml"
    source.write_text(config if isinstance(config, str) else json.dumps(config))
    assert main(["import-nni", str(source), *words, "--output", str(recipe)]) == 0
    _, report = check_recipe([f"recipe={recipe}"])
    assert report.targets
    found: dict[str, Any] = yaml.safe_load(recipe.read_text())
    return found


def test_a_configuration_of_nni_3(tmp_path: Path) -> None:
    recipe = imported(tmp_path, NEW)
    assert recipe["compressor"]["targets"] == {
        "convs": None,
        "target_0": {
            "op_types": ["Conv2d"], "exclude_op_names": ["conv1"], "sparse_ratio": 0.5, "max_sparse_ratio": 0.8,
            "target_settings": {"weight": {"granularity": "output_channel"}},
        },
    }  # fmt: skip
    assert "shrink" in recipe["stages"]
    assert "# bias is left out: biases follow their channels" in (tmp_path / "mine.yaml").read_text()


def test_legacy_spellings_and_exclusions(tmp_path: Path) -> None:
    targets = imported(tmp_path, OLD)["compressor"]["targets"]
    excluded = {"exclude_op_names": ["layer2.0.conv1"]}
    del targets["convs"]
    assert targets == {
        "target_0": {"op_types": ["Conv2d"], "op_names_re": [r".*layer2\."], "sparse_ratio": 0.4, **excluded},
        "target_1": {"op_types": ["Conv2d"], "op_names": ["layer3.0.conv1"], "sparse_ratio": 0.2, **excluded},
    }


def test_a_total_sparsity_makes_layers_compete(tmp_path: Path) -> None:
    compressor = imported(tmp_path, TOTAL)["compressor"]
    assert compressor["allocation"] == {"name": "global"}
    assert compressor["targets"]["target_0"] == {
        "op_types": ["Conv2d"], "sparse_ratio": 0.5, "max_sparse_ratio": 0.7
    }  # fmt: skip


def test_a_level_pruner_on_an_mlp_has_nothing_to_shrink(tmp_path: Path) -> None:
    recipe = imported(tmp_path, [{"sparsity": 0.8, "op_types": ["Linear"]}], "compressor=level", "model=mlp")
    assert "shrink" not in recipe["stages"]


@pytest.mark.parametrize("name", ["script.py", "config.yaml", "config.json"])
def test_all_kinds_of_files_give_one_recipe(tmp_path: Path, name: str) -> None:
    text = {
        "script.py": f"import nni\nprint(nni)\nconfig_list = {NEW!r}\npruner = nni.Pruner(config_list)\n",
        "config.yaml": yaml.safe_dump({"config_list": NEW}),
        "config.json": json.dumps(NEW),
    }[name]
    assert imported(tmp_path, text, name=name)["compressor"] == imported_targets(NEW)


def imported_targets(config: list[Any]) -> dict[str, Any]:
    return {"targets": {"convs": None, **import_config_list(config).targets}}


def test_every_key_that_is_understood_is_one_of_ours() -> None:
    entry = {"op_types": ["Linear"], "sparsity": 0.5, "max_sparsity_per_layer": 0.9, "granularity": [1, 1]}
    target = import_config_list([entry]).targets["target_0"]
    assert PrunerSettings.from_targets({"a": target}, importance="level").targets["a"].granularity == "element"


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ([{"sparsty": 0.5, "op_types": ["Conv2d"]}], "config_list[0].sparsty: unknown key; did you mean 'sparsity'"),
        ([{"sparsity": 0.5, "op_type": ["Conv2d"]}], "config_list[0].op_type: unknown key; did you mean 'op_types'"),
        ([{"sparsity": 0.5}], "config_list[0]: selects nothing"),
        ([{"sparsity": 0.5, "op_types": ["default"]}], "config_list[0]: 'default' stands for all layers"),
        ([{"sparsity": 0.5, "op_types": 3}], "config_list[0].op_types: is not a list of names"),
        ([["Conv2d"]], "config_list[0]: is a list, not a dict"),
        ([{"exclude": True, "op_names": ["a"]}], "config_list[0]: excludes modules, and no entry before it"),
        (
            [{"sparsity": 0.5, "sparse_ratio": 0.5, "op_types": ["Conv2d"]}],
            "config_list[0].sparsity: says the same as another key of this entry: both are sparse_ratio",
        ),
        (
            [{"total_sparsity": 0.5, "max_sparsity_per_layer": {"conv1": 0.4}, "op_types": ["Conv2d"]}],
            "config_list[0].max_sparsity_per_layer: is a dict; one number for all layers",
        ),
        (
            [{"total_sparsity": 0.5, "op_types": ["Conv2d"]}, {"sparsity": 0.5, "op_types": ["Linear"]}],
            "config_list[0]: lets its layers compete and config_list[1] does not; make two recipes",
        ),
        ([{"quant_dtype": "int8", "op_types": ["Conv2d"]}], "config_list[0].quant_dtype: this is a configuration of a"),
        ([{"internal_metric_block": 4, "op_types": ["Linear"]}], "config_list[0].internal_metric_block: a block of"),
        (
            [{"sparsity": 0.5, "op_types": ["Linear"], "target_names": ["_output_"]}],
            "config_list[0].target_names: _output_ is no parameter: masks lie on weights here",
        ),
        (
            [{"sparsity": 0.5, "op_types": ["Linear"], "apply_method": "add"}],
            "config_list[0].apply_method: only 'mul' is here",
        ),
        (
            [{"sparsity": 0.5, "op_types": ["Linear"], "granularity": "out_chanel"}],
            "config_list[0].granularity: no granularity named 'out_chanel'; did you mean 'out_channel'",
        ),
        (
            [{"op_types": ["Linear"], "target_settings": {"weight": {"sparcity": 0.5}}}],
            "config_list[0].target_settings.weight.sparcity: unknown key; did you mean 'sparsity'",
        ),
    ],
)
def test_what_can_t_be_taken_over_is_one_line(entries: list[Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        import_config_list(entries)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("config_list = make()\n", [], "assigns no list to a name like config_list"),
        ("config_list = [make()]\n", [], "config.py, line 1: the list is computed, not written out"),
        ("config_list = [\n", [], "config.py, line 1: not Python"),
        (f"config_list = {NEW}\n", ["model=resent20"], "no model named 'resent20'; did you mean 'resnet20'"),
        (f"config_list = {NEW}\n", ["modle=mlp"], "no group named 'modle'; did you mean 'model'"),
        (f"config_list = {NEW}\n", ["--outptu", "a"], "unknown option '--outptu'; did you mean '--output'"),
        (f"config_list = {NEW}\n", ["other.json"], "import-nni takes one file"),
        (f"config_list = {NEW}\n", ["--output"], "--output needs the name of a file"),
        ("config_list = []\n", [], "has no list of settings"),
    ],
)
def test_wrong_input_ends_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str], line: str
) -> None:
    (tmp_path / "config.py").write_text(text)
    assert main(["import-nni", str(tmp_path / "config.py"), *words]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, recipe = tmp_path / "config.json", tmp_path / "mine.yaml"
    config.write_text(json.dumps(NEW)), recipe.write_text("seed: 3\n")
    assert main(["import-nni", str(config), "--output", str(recipe)]) == 2
    assert recipe.read_text() == "seed: 3\n"
    assert main(["import-nni", str(tmp_path / "none.json")]) == 2
    assert "none.json can't be read: No such file" in capsys.readouterr().err
