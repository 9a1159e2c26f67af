"""File and line of each key of a composed recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnicompress.config.compose import compose_with_origin

RECIPE = """\
# A recipe.
defaults:
  - override /optimizer: adam
  - /compressor@stages.prune.compressor: l1

stages:
  train:
    max_epochs: 3
  prune:
    compressor:
      targets: {convs: {sparse_ratio: 0.3}}
optimizer:
  param_groups:
    - {params_re: bias, weight_decay: 0}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("stages.train.max_epochs", "recipes/mine.yaml:8"),
        ("stages.prune.compressor.targets.convs.sparse_ratio", "recipes/mine.yaml:11"),
        ("optimizer.param_groups.0.weight_decay", "recipes/mine.yaml:14"),
        ("optimizer.param_groups[0].weight_decay", "recipes/mine.yaml:14"),
        ("stages.train.never_written", "recipes/mine.yaml:7"),  # the nearest ancestor that was written
        ("never_written", None),
    ],
)
def test_a_key_of_the_recipe_is_found_by_file_and_line(here: Path, key: str, source: str | None) -> None:
    assert compose_with_origin(["recipe=mine"]).origin.source_of(key) == source


def test_keys_of_groups_lie_in_the_option_that_was_chosen(here: Path) -> None:
    origin = compose_with_origin(["recipe=mine"]).origin
    file, _, line = str(origin.source_of("optimizer.lr")).rpartition(":")
    assert file.endswith("conf/optimizer/adam.yaml")
    assert Path(file).read_text().splitlines()[int(line) - 1].startswith("lr:")
    file, _, line = str(origin.source_of("stages.prune.compressor.importance.name")).rpartition(":")
    assert file.endswith("conf/compressor/l1.yaml")
    assert "name" in Path(file).read_text().splitlines()[int(line) - 1]


def test_an_override_wins_over_every_file(here: Path) -> None:
    overrides = ["recipe=mine", "stages.train.max_epochs=1", "+model.extra={depth: 3, names: [a]}", "~optimizer.betas"]
    origin = compose_with_origin(overrides).origin
    for key in ("stages.train.max_epochs", "model.extra", "model.extra.depth", "model.extra.names[0]"):
        assert origin.source_of(key) == "command line", key
    assert origin.source_of("stages.train") == "recipes/mine.yaml:7"


def test_files_of_the_config_dir_are_named_by_their_path(here: Path) -> None:
    (here / "own" / "optimizer").mkdir(parents=True)
    (here / "own" / "optimizer" / "adam.yaml").write_text("_target_: torch.optim.Adam\n\nlr: 1\n")
    origin = compose_with_origin(["recipe=mine"], config_dir=here / "own").origin
    assert origin.source_of("optimizer.lr") == "own/optimizer/adam.yaml:3"
