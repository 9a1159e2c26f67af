"""Wrong input, and the exact line that the user gets for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from nnicompress.checks.recipe import check_recipe
from nnicompress.config.compose import compose
from nnicompress.config.messages import explained
from nnicompress.errors import ConfigError, InputErrors
from nnicompress.paths import find_groups, find_recipes

TAYLOR = "recipe=taylorfo_resnet"
COMPRESSORS = f"(known: {', '.join(sorted(find_groups()['compressor']))})"


def line_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["sed=1"], "unknown key 'sed'; did you mean 'seed'? (command line)"),
        (["optimzer=adam"], "unknown key 'optimzer'; did you mean 'optimizer'? (command line)"),
        (
            ["compressor.targets.cnovs.sparse_ratio=0.5"],
            "unknown key 'compressor.targets.cnovs'; did you mean 'compressor.targets.convs'? (command line)",
        ),
        (["compressor=null"], "'compressor=null': to choose no option write ~compressor (command line)"),
        (["+seed=1"], "'seed' is there already; write seed=1 without the + (command line)"),
        (["~sed"], "there is no 'sed' to delete (command line)"),
        (["optimizer=admm"], "no optimizer named 'admm'; did you mean 'adam' or 'adamw'? "),
        (
            ["compressor=taylorf"],
            f"no compressor named 'taylorf'; did you mean 'taylorfo' or 'taylor_bn'? {COMPRESSORS} (command line)",
        ),
        (["compressor@stages.prun=l1"], "nothing to override at 'compressor@stages.prun' (command line)"),
        (["seed"], "'seed' is not an override; write KEY=VALUE (command line)"),
        (["=1"], "'=1' is not an override; write KEY=VALUE, without spaces around '=' (command line)"),
        (
            ["seed=1,2"],
            "'seed=1,2' gives several values: add -m to run each of them, or write seed=[1,2] for one list "
            "(command line)",
        ),
        (["seed=range(0,3)"], "'seed=range(0,3)' gives several values: add -m to run each of them (command line)"),
        (
            ["summary=it's"],
            'cannot read "summary=it\'s"; text with spaces or any of ,\'"()[]{}:= is written in quotes: '
            "'summary=\"it's\"' (command line)",
        ),
    ],
)
def test_a_wrong_override_is_one_line(overrides: list[str], line: str) -> None:
    assert line_of(TAYLOR, *overrides).startswith(line)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.lrr=1", "optimizer: torch.optim.SGD takes no 'lrr'; did you mean 'lr'? (command line)"),
        (
            "compressor.targets.convs.sparse_ratoi=0.5",
            "compressor.targets.convs: unknown key 'sparse_ratoi'; did you mean 'sparse_ratio' or 'min_sparse_ratio' "
            "or 'max_sparse_ratio'? (command line)",
        ),
        (
            "stages.evaluate.batch_sizes=[]",
            "stages.evaluate.batch_sizes: latency needs at least one batch size; null: 1 and the recipe's own "
            "(command line)",
        ),
        ("model.zoom=2", "model: nnicompress.models.resnet.resnet20 takes no 'zoom'"),
    ],
)
def test_a_wrong_key_or_value_below_a_right_one_is_told_by_the_schema(override: str, line: str) -> None:
    with pytest.raises(InputErrors) as caught:
        check_recipe([TAYLOR, override])
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_wrong_recipe_is_one_line_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = f"(known: {', '.join(find_recipes())})"
    assert line_of() == f"no recipe given; write recipe=NAME {known}"
    assert line_of("recipe=level_mpl") == (
        f"no recipe named 'level_mpl'; did you mean 'level_mlp'? {known} (command line)"
    )
    assert line_of("recipe=taylorfo_resnet.yaml") == (
        "no file 'taylorfo_resnet.yaml'; the recipe is called 'taylorfo_resnet': recipe=taylorfo_resnet (command line)"
    )
    assert line_of("recipe=nowhere/mine.yaml") == "no file 'nowhere/mine.yaml' (command line)"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    assert line_of("recipe=mine") == "no recipe named 'mine'; for the file write recipe=mine.yaml (command line)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\n\tstages: 2\n", "invalid YAML: found character '\\t' that cannot start any token; "
         "YAML is indented with spaces, not with tabs (mine.yaml:2:1)"),
        ("summary: a: b\n", "invalid YAML: mapping values are not allowed here; "
         "a value that contains ': ' is written in quotes (mine.yaml:1:11)"),
        ("seed: [1\nstages: {}\n", "invalid YAML: expected ',' or ']', but got ':' (mine.yaml:2:7)"),
        ("seed: 1\nseed: 2\n", "invalid YAML: found duplicate key seed; a key is written once (mine.yaml:2:1)"),
        ("- a\n- b\n", "a recipe is a mapping of settings, not a list (mine.yaml)"),
        ("defaults:\n  - override /compressor: taylorf\n",
         f"no compressor named 'taylorf'; did you mean 'taylorfo' or 'taylor_bn'? {COMPRESSORS} (mine.yaml:2)"),
        ("defaults:\n  - override /optimizer: adam\n  - override /modle: mlp\n",
         "defaults: no group 'modle'; did you mean 'model'? (mine.yaml:3)"),
        ("defaults:\n  - model: mlp\n",
         "defaults: write 'override /model: mlp' in place of 'model: mlp' (mine.yaml:2)"),
        ("defaults:\n  - /model: mlp\n",
         "defaults: model has an option already; to choose another write 'override /model: OPTION' (mine.yaml:2)"),
        ("defaults:\n  - /compresor@stages.prune.compressor: l1\n",
         "defaults: no group 'compresor'; did you mean 'compressor'? (mine.yaml:2)"),
        ("defaults:\n  - /compressor@stages.prune.compressor: l11\n",
         f"no compressor named 'l11'; did you mean 'l1'? {COMPRESSORS} (mine.yaml:2)"),
        ("defaults:\n  model: mlp\n", "defaults: is a list: - override /GROUP: OPTION (mine.yaml:1)"),
        ("defaults:\n  - {override /model: mlp, override /data: digits}\n",
         "defaults: each entry is one choice: - override /GROUP: OPTION (mine.yaml:2)"),
        ("defaults:\n  - override /model: 3\n", "defaults: each entry is one choice: - override /GROUP: OPTION "
         "(mine.yaml:2)"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_file_is_one_line_that_names_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    assert line_of("recipe=mine.yaml") == line


def test_invalid_yaml_in_a_group_s_option_names_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "sgd.yaml").write_text("_target_: torch.optim.SGD\nlr: [0.1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"invalid YAML: .* \(optimizer/sgd.yaml:3:1\)"):
        compose([TAYLOR], config_dir=tmp_path)


def test_a_missing_value_names_its_key() -> None:
    config = OmegaConf.create({"optimizer": {"lr": "???"}})
    with pytest.raises(ConfigError) as caught, explained([]):
        config.optimizer.lr  # noqa: B018
    assert str(caught.value) == "optimizer.lr: a value is required; pass optimizer.lr=VALUE"
    assert isinstance(caught.value.__cause__, MissingMandatoryValue)


def test_errors_of_other_code_pass_unchanged() -> None:
    with pytest.raises(ValueError, match="mine"), explained([]):
        raise ValueError("mine")
