"""`nnicompress ls`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nnicompress.cli import main
from nnicompress.config.schema import COMPRESSORS
from nnicompress.paths import find_groups, find_recipes, shipped, summary
from nnicompress.pruning.importance import importance_of
from nnicompress.pruning.settings import PrunerSettings


def test_every_shipped_recipe_and_option_is_listed_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    listing = capsys.readouterr().out
    files = [*shipped("recipes").rglob("*.yaml"), *shipped("conf").glob("*/*.yaml")]
    assert len(files) > 25
    for file in files:
        first = file.read_text().splitlines()[0]
        assert first.startswith("# "), f"{file} begins with no summary"
        name = file.stem
        assert any(line.split() == [name, *first[2:].split()] for line in listing.splitlines()), name


def test_one_group_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "optimizer"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "optimizer"
    assert [line.split()[0] for line in lines[1:]] == sorted(
        file.stem for file in (shipped("conf") / "optimizer").iterdir()
    )


def test_what_a_user_adds_is_listed_and_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("here/recipes", "own/recipes/deep", "own/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "here/recipes/mine.yaml").write_text("# Mine, here\nseed: 1\n")
    (tmp_path / "own/recipes/mine.yaml").write_text("# @package _global_\n\n# Mine, own\nseed: 1\n")
    (tmp_path / "own/recipes/deep/er.yaml").write_text("seed: 1\n")
    (tmp_path / "own/model/net.yaml").write_text("# A net\n")
    monkeypatch.chdir(tmp_path / "here")
    assert summary(find_recipes()["mine"]) == "Mine, here"
    recipes = find_recipes(tmp_path / "own")
    assert {"mine", "deep/er", "taylorfo_resnet"} <= set(recipes)
    assert (summary(recipes["mine"]), summary(recipes["deep/er"])) == ("Mine, own", "")
    assert set(find_groups(tmp_path / "own")["model"]) == {"net", *find_groups()["model"]}


def test_an_unknown_group_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "compresor"]) == 2
    assert capsys.readouterr().err.startswith("error: no group named 'compresor'; did you mean 'compressor'?")


def test_the_table_of_compressors_says_what_each_needs(capsys: pytest.CaptureFixture[str]) -> None:
    """What a preset's comment claims is what its settings ask of the evaluator."""
    assert main(["ls", "compressors"]) == 0
    head, *rows, empty, legend = capsys.readouterr().out.splitlines()
    assert head.split() == ["compressor", "paper", "needs", "use", "it", "for"] and not empty and "gradients" in legend
    presets = find_groups()["compressor"]
    assert [row.split()[0] for row in rows] == list(presets)
    starts = [head.index(word) for word in ("compressor", "paper", "needs", "use")]
    for row in rows:
        name, paper, needs, use = (row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True))
        values = yaml.safe_load(presets[name].read_text())
        asked = COMPRESSORS[values["kind"]].model_validate(values)
        assert needs == (asks(asked) if isinstance(asked, PrunerSettings) else "training" if asked.trains else "data")
        assert use and (paper or name in ("random", "l2")), name


def asks(settings: PrunerSettings) -> str:
    importance = importance_of(settings.importance)
    if importance.inputs is not None:
        return "data"
    trains = importance.learning is not None or settings.schedule.name == "lottery_ticket"
    return "training" if trains else "gradients" if importance.needs_gradient else "nothing"
