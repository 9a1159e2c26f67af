"""The settings of a search, the values that it goes by, and the points that are checked before it starts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nnicompress.errors import InputErrors, JobError, UserError
from nnicompress.paths import shipped
from nnicompress.report.record import Report
from nnicompress.sweep.points import representative_points
from nnicompress.sweep.settings import SearchSettings, directions, from_mapping, from_overrides, objective_values
from tests.report.sample import PHASES, make_report


def test_the_shipped_file_has_every_setting_with_its_default() -> None:
    written = OmegaConf.to_container(OmegaConf.load(shipped("conf") / "hydra" / "sweeper" / "nnicompress_optuna.yaml"))
    assert isinstance(written, dict)
    assert set(written) == {"_target_", *SearchSettings.model_fields}
    assert from_mapping({str(key): value for key, value in written.items()}) == SearchSettings()


def test_settings_are_read_off_the_command_line() -> None:
    words = ["recipe=a", "hydra.sweeper.n_trials=3", "hydra.sweeper.objective=[accuracy,macs_ratio]", "seed=1,2"]
    settings = from_overrides([*words, "hydra.sweeper.storage=s.db", "hydra/sweeper=nnicompress_optuna"])
    assert (settings.n_trials, settings.objective) == (3, ("accuracy", "macs_ratio"))
    assert settings.storage_url == "sqlite:///s.db"
    assert from_mapping({"storage": "sqlite:////tmp/x"}).storage_url == "sqlite:////tmp/x"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("n_trails=3", "hydra.sweeper: unknown key 'n_trails'; did you mean 'n_trials'?"),
        ("n_trials=0", "hydra.sweeper.n_trials: 0 is "),
        ("n_jobs=-1", "hydra.sweeper.n_jobs: -1 is "),
        ("n_trials=1,2", "hydra.sweeper.n_trials: is a setting of the search, and can't be searched over"),
        ("sampler=gp", "hydra.sweeper.sampler: 'gp' is not 'tpe', 'random' or 'grid'"),
        ("objective=acuracy", "hydra.sweeper.objective: 'acuracy' is not "),
        ("objective=[]", "hydra.sweeper.objective: "),
    ],
)
def test_wrong_settings_are_one_line(word: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        from_overrides([f"hydra.sweeper.{word}"])
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
    assert isinstance(caught.value, InputErrors) or "searched over" in line


def test_the_recipe_s_mode_says_which_way_is_better() -> None:
    names = ["validation", "accuracy", "accuracy_drop", "macs_ratio", "latency_ratio"]
    assert directions(names, "max") == ["maximize", "maximize", "minimize", "minimize", "minimize"]
    assert directions(names, "min") == ["minimize"] * 5


def test_values_are_those_of_the_report() -> None:
    report = make_report()
    assert objective_values(report, ["validation", "accuracy", "macs_ratio"]) == (0.95, 0.96, 0.5)
    assert objective_values(report, ["latency_ratio"]) == pytest.approx((0.4,))


@pytest.mark.parametrize(("value", "line"), [(None, "was not measured"), (math.nan, "is nan")])
def test_a_value_that_is_none_is_an_error(value: float | None, line: str) -> None:
    phases = (*PHASES[:-1], PHASES[-1].model_copy(update={"validation": value}))
    report: Report = make_report(phases=phases)
    with pytest.raises(JobError, match=f"its validation, the objective of the search, {line}"):
        objective_values(report, ["validation"])


def test_each_choice_and_both_ends_are_among_the_points(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    words = [
        "recipe=glob(*a*o*_resnet)",
        "seed=3,4,5",
        "a.b=interval(0.1,0.9)",
        "c=range(1,9)",
        "d=1",
        "hydra.verbose=true",
    ]
    points = representative_points(words, config_dir=tmp_path)
    first = ["recipe=random_resnet", "seed=3", "a.b=0.1", "c=1", "d=1", "hydra.verbose=true"]
    assert points[0] == first
    changed = [[word for word in point if word not in first] for point in points[1:]]
    assert changed == [["recipe=taylorfo_resnet"], ["seed=4"], ["seed=5"], ["a.b=0.9"], ["c=8"]]


def test_nothing_to_search_and_an_endless_grid_are_refused() -> None:
    with pytest.raises(UserError, match="nothing to search"):
        representative_points(["recipe=taylorfo_resnet", "seed=1"])
    grid = ["recipe=taylorfo_resnet", "hydra.sweeper.sampler=grid", "optimizer.lr=interval(0.1,0.2)"]
    with pytest.raises(UserError, match="a grid needs optimizer.lr=range"):
        representative_points(grid)
    assert len(representative_points(grid, own=False)) == 2, "another sweeper's settings are its own"
