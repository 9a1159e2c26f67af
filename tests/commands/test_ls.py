"""`nnicompress ls`."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnicompress.cli import main
from nnicompress.paths import find_groups, find_recipes, shipped, summary


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
