"""Options told from overrides, wherever they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnicompress.commands.arguments import Arguments, parse, parse_recipe
from nnicompress.errors import UserError


def test_options_may_stand_anywhere(tmp_path: Path) -> None:
    argv = ["recipe=a", "--smoke", "seed=1", "-m", f"--config-dir={tmp_path}", "x=2", "--trust", "one", "--trust=two"]
    assert parse_recipe(argv, command="run", hydra=True, smoke=True) == Arguments(
        overrides=("recipe=a", "seed=1", "x=2"),
        hydra_options=("--multirun",),
        config_dir=tmp_path,
        trust=("one", "two"),
        smoke=True,
    )


def test_the_value_of_info_is_optional_and_takes_no_override() -> None:
    assert parse_recipe(["--info", "recipe=a"], command="run", hydra=True).hydra_options == ("--info", "all")
    assert parse_recipe(["-i", "searchpath"], command="run", hydra=True).hydra_options == ("--info", "searchpath")


@pytest.mark.parametrize(
    ("argv", "overrides"),
    [
        (["a"], ("recipe=a",)),
        (["a,b", "seed=1"], ("recipe=a,b", "seed=1")),
        (["glob(*)"], ("recipe=glob(*)",)),
        (["seed=1", "recipe=a"], ("seed=1", "recipe=a")),
        (["~optimizer.lr"], ("~optimizer.lr",)),
        ([], ()),
    ],
)
def test_the_first_word_may_be_the_recipe(argv: list[str], overrides: tuple[str, ...]) -> None:
    assert parse_recipe(argv, command="run").overrides == overrides


def test_a_recipe_s_file_is_quoted_where_hydra_s_grammar_needs_it(tmp_path: Path) -> None:
    file = tmp_path / "it's (mine), a=b.yaml"
    file.write_text("")
    (override,) = parse_recipe([str(file)], command="run").overrides
    assert override == f"recipe='{tmp_path}/it\\'s (mine), a=b.yaml'"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--multi"], "nnicompress run has no option '--multi'; did you mean '--multirun'?"),
        (["--smoek"], "nnicompress run has no option '--smoek'; did you mean '--smoke'?"),
        (["--trust"], "--trust needs a value"),
        (["--trust", "--smoke"], "--trust needs a value"),
        (["--cfg", "jobs"], "--cfg is one of job, hydra, all, not 'jobs'"),
        (["--resolve"], "--resolve goes with --cfg job, as in: --cfg job --resolve"),
        (["--config-dir", "/nowhere"], "--config-dir: no folder '/nowhere'"),
        (
            ["--config-name", "x"],
            "--config-name is refused: choose a recipe instead: recipe=NAME, or a path to a YAML file",
        ),
        (["-cp", "x"], "--config-path is refused: use --config-dir, whose files win over the shipped ones"),
        (
            ["--experimental-rerun", "x.pickle"],
            "--experimental-rerun is refused: it would unpickle a file, which can run any code; run the recipe again "
            "instead",
        ),
        (["a", "recipe=b"], "two recipes are given: 'a' and 'recipe=b'; sweep over both with -m recipe=A,B"),
        (["recipe=a", "lr", "=", "3"], "'lr = 3': write KEY=VALUE without spaces around '='"),
        (["recipe=a", "lr=", "3"], "'recipe=a lr= 3': write KEY=VALUE without spaces around '='"),
        (["recipe=a", "lr", "=3"], "'lr =3': write KEY=VALUE without spaces around '='"),
        (["recipe=a", "hydra.run.dir=x"], "'hydra.run.dir=x': the folder of a run is set with run_dir=FOLDER"),
    ],
)
def test_wrong_arguments_are_one_line(argv: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(argv, command="run", hydra=True, smoke=True)
    assert str(caught.value) == line


def test_an_empty_value_is_a_value() -> None:
    assert parse_recipe(["recipe=a", "summary=", "seed=1"], command="run").overrides[1] == "summary="


def test_commands_without_sweeps_refuse_their_options() -> None:
    with pytest.raises(UserError, match="nnicompress check has no option '-m'"):
        parse_recipe(["a", "-m"], command="check")
    with pytest.raises(UserError, match="nnicompress ls has no option '--trust'"):
        parse(["--trust", "x"], command="ls", trust=False)
