"""Composing a recipe: choices, folders of runs, isolation from other Hydra applications, sweeps."""

from __future__ import annotations

import os
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from nnicompress.config.compose import compose, compose_with_origin, sweep_points
from nnicompress.errors import ConfigError, InputErrors
from nnicompress.paths import recipe_override

TAYLOR = "recipe=taylorfo_resnet"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_recipe_wins_over_the_groups_it_chooses_and_an_override_over_the_recipe() -> None:
    config = compose([TAYLOR, "optimizer=adam", "stages.train.max_epochs=2"])
    assert config.optimizer._target_ == "torch.optim.Adam"
    assert config.stages.train.max_epochs == 2
    assert config.stages.finetune.optimizer.lr == 0.005
    assert "hydra" not in config


def test_the_last_of_two_equal_overrides_holds() -> None:
    assert compose([TAYLOR, "seed=1", "seed=2"]).seed == 2


def test_the_folder_of_a_run_depends_on_the_settings_alone() -> None:
    first = compose([TAYLOR])
    assert first.name == "taylorfo_resnet"
    assert first.run_dir.startswith("runs/taylorfo_resnet-")
    assert len(first.run_dir.rpartition("-")[2]) == 8
    assert compose([TAYLOR, "summary=other"]).run_dir == first.run_dir, "the summary changes no result"
    assert compose([TAYLOR, "seed=0"]).run_dir == first.run_dir, "the same value, written out"
    assert compose([TAYLOR, "seed=1"]).run_dir != first.run_dir
    assert compose([TAYLOR, "run_dir=elsewhere"]).run_dir == "elsewhere"


def test_a_recipe_by_its_path_is_the_same_as_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "defaults:\n  - override /model: mlp\nstages: {train: {max_epochs: 1}}\n"
    by_path = compose([recipe_override(write(tmp_path / "in here" / "mine's.yaml", text))])
    assert by_path.name == "mine's"
    assert by_path.model._target_ == "nnicompress.models.mlp.mlp"
    write(tmp_path / "recipes" / "vision" / "mine.yaml", text)
    monkeypatch.chdir(tmp_path)
    by_name, by_relative_path = compose(["recipe=vision/mine"]), compose(["recipe=./recipes/vision/mine.yaml"])
    assert by_name.name == "vision-mine"
    assert by_name.stages == by_relative_path.stages == by_path.stages


def test_a_user_s_file_wins_over_the_shipped_one_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path / "optimizer" / "sgd.yaml", "_target_: torch.optim.SGD\nlr: 0.5\n")
    write(tmp_path / "recipes" / "taylorfo_resnet.yaml", "stages: {train: {max_epochs: 77}}\n")
    config = compose([TAYLOR], config_dir=tmp_path)
    assert config.optimizer == {"_target_": "torch.optim.SGD", "lr": 0.5}
    assert config.stages == {"train": {"max_epochs": 77}}
    assert compose([TAYLOR]).optimizer.lr == 0.1, "without --config-dir nothing of it is left"


def test_overrides_may_stand_before_other_entries_of_a_recipe_s_defaults(tmp_path: Path) -> None:
    text = """\
defaults:
  - override /model: mlp
  - /compressor@stages.prune.compressor: taylorfo
stages: {train: {max_epochs: 1}, prune: {compressor: {targets: {convs: {sparse_ratio: 0.3}}}}}
"""
    config = compose([f"recipe={write(tmp_path / 'two.yaml', text)}"])
    assert config.model._target_ == "nnicompress.models.mlp.mlp"
    assert config.stages.prune.compressor.importance.name == "taylor"
    assert config.stages.prune.compressor.targets.convs.sparse_ratio == 0.3, "the recipe's own settings win"


def test_a_recipe_may_build_on_another(tmp_path: Path) -> None:
    file = write(tmp_path / "more.yaml", "defaults:\n  - taylorfo_resnet\nseed: 5\n")
    config = compose([f"recipe={file}"])
    assert (config.seed, config.name) == (5, "more")
    assert config.stages.train.max_epochs == compose([TAYLOR]).stages.train.max_epochs


def test_all_wrong_overrides_are_shown_at_once() -> None:
    with pytest.raises(InputErrors) as caught:
        compose([TAYLOR, "sed=1", "seed=2", "optimzer.lr=3", "compressor=taylorf"])
    assert sorted(str(error).split(";")[0] for error in caught.value.errors) == [
        "no compressor named 'taylorf'",
        "unknown key 'optimzer'",
        "unknown key 'sed'",
    ]


def test_a_setting_that_no_file_writes_is_given_like_any_other() -> None:
    composed = compose_with_origin([TAYLOR, "stages.evaluate.seconds=0.5", "optimizer.maximize=true"])
    assert composed.config.stages.evaluate.seconds == 0.5
    assert composed.config.optimizer.maximize is True
    assert composed.origin.source_of("optimizer.maximize") == "command line"
    composed = compose_with_origin(["recipe=ptq_resnet", "compressor.targets.all.target_settings.weight.observer=mse"])
    assert composed.config.compressor.targets.all.target_settings.weight.observer == "mse"
    assert composed.origin.source_of("compressor.targets.all.target_settings") == "command line"
    with pytest.raises(ConfigError, match="unknown key 'compressor.targets.mine'; to add a key"):
        compose(["recipe=ptq_resnet", "compressor.targets.mine.observer=mse"])


def test_a_mapping_on_the_command_line_may_hold_settings_that_no_file_writes() -> None:
    config = compose(["recipe=qat_resnet", "compressor.observer={name: mse, bins: 512}"])
    assert dict(config.compressor.observer) == {"name": "mse", "momentum": 0.1, "bins": 512}


def test_a_preset_placed_into_a_stage_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    recipe = write(
        tmp_path / "placed.yaml",
        "# One line\n"
        "defaults:\n  - /compressor@stages.prune.compressor: l1\n"
        "stages:\n"
        "  train: {max_epochs: 1}\n"
        "  prune: {compressor: {targets: {convs: {sparse_ratio: 0.3}}}}\n"
        "  shrink: {}\n",
    )
    config = compose([f"recipe={recipe}"])
    assert list(config.stages) == ["train", "prune", "shrink"]
    assert config.stages.prune.compressor.targets.convs.sparse_ratio == 0.3
    assert config.stages.prune.compressor.importance.name == "l1"
    assert config.summary == "One line"


def test_a_target_of_one_s_own_drops_the_arguments_of_the_option_it_replaces(tmp_path: Path) -> None:
    recipe = write(
        tmp_path / "own.yaml",
        "model: {_target_: my_model.Net, depth: 3}\noptimizer: {lr: 0.5}\n"
        "stages:\n  train: {max_epochs: 1}\n  evaluate: {}\n",
    )
    config = compose([f"recipe={recipe}", "+model.wide=true"])
    assert config.model == {"_target_": "my_model.Net", "depth": 3, "wide": True}
    assert config.optimizer._target_ == "torch.optim.SGD" and config.optimizer.lr == 0.5


def test_a_checkpoint_from_the_command_line_takes_the_place_of_training() -> None:
    config = compose([TAYLOR, "~stages.train", "+stages.start.checkpoint=my.safetensors"])
    assert list(config.stages)[:2] == ["start", "prune"]


def test_composing_leaves_another_hydra_application_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "app.yaml", "value: 3\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2"):
        outer = GlobalHydra.instance().hydra
        compose([TAYLOR])
        assert GlobalHydra.instance().hydra is outer
        assert hydra.version.getbase() == hydra.version.Version("1.2")
        assert hydra.compose("app").value == 3
        as_a_key = hydra.compose("app", overrides=["+recipe=taylorfo_resnet"])
        assert as_a_key.recipe == "taylorfo_resnet", "our group of recipes is not on its search path"
    assert not GlobalHydra.instance().is_initialized()


def test_a_failed_composition_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(ConfigError):
        compose(["recipe=nope"])
    assert not GlobalHydra.instance().is_initialized()
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert compose([TAYLOR]).name == "taylorfo_resnet"


def test_points_of_a_sweep_are_the_product_of_its_lists() -> None:
    points = sweep_points(["recipe=taylorfo_resnet,level_mlp", "seed=range(0,2)", "optimizer=adam"])
    assert points == [
        [f"recipe={recipe}", f"seed={seed}", "optimizer=adam"]
        for recipe in ("taylorfo_resnet", "level_mlp")
        for seed in (0, 1)
    ]
    globbed = sweep_points(["recipe=glob(level*)"])
    assert globbed == [["recipe=level_mlp"]]


def test_a_sweep_without_values_is_an_error() -> None:
    with pytest.raises(ConfigError, match="the sweep has no values"):
        sweep_points(["recipe=glob(nothing*)"])
    with pytest.raises(ConfigError, match="is no list of values"):
        sweep_points([TAYLOR, "optimizer.lr=interval(0,1)"])


def test_the_origin_of_a_composed_recipe() -> None:
    composed = compose_with_origin([TAYLOR, "seed=1"])
    assert composed.origin.recipe == "taylorfo_resnet"
    assert composed.origin.file is not None
    assert composed.origin.file.name == "taylorfo_resnet.yaml"
    assert composed.origin.source_of("seed") == "command line"
