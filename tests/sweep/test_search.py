"""The search itself, over functions whose best point is known: directions, failures, repeats, going on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState

from nnicompress.errors import UserError
from nnicompress.sweep.search import Outcome, best_line, finished, open_study, run_search
from nnicompress.sweep.settings import SearchSettings, from_mapping
from nnicompress.sweep.space import Space, read_space

Batches = list[tuple[int, list[list[str]]]]


def space_of(*overrides: str) -> Space:
    return read_space(OverridesParser.create().parse_overrides(list(overrides)))


def launcher(function: Callable[..., float | None], batches: Batches) -> Callable[..., Sequence[Outcome]]:
    """Runs `function(key=value, ...)` for each point; None is a failed run."""

    def launch(points: Sequence[Sequence[str]], first: int) -> list[Outcome]:
        batches.append((first, [list(point) for point in points]))
        results = []
        for point in points:
            value = function(**{key: float(text) for key, text in (word.split("=") for word in point)})
            results.append(Outcome(None if value is None else (value,), f"/runs/{'-'.join(point)}"))
        return results

    return launch


def search(settings: SearchSettings, space: Space, function: Callable[..., float | None], direction: str) -> Batches:
    batches: Batches = []
    assert direction in ("minimize", "maximize")
    study = open_study(settings, space, [direction], "test")  # type: ignore[list-item]
    run_search(settings, space, study, launcher(function, batches))
    return batches


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_tpe_comes_closer_than_chance_in_the_direction_asked_for(direction: str) -> None:
    sign = 1 if direction == "minimize" else -1
    space = space_of("x=interval(-10,10)", "y=interval(-10,10)")
    best = {}
    for sampler in ("tpe", "random"):
        worst = []
        for seed in range(5):
            values: list[float] = []

            def bowl(x: float, y: float, values: list[float] = values) -> float:
                values.append((x - 3) ** 2 + (y + 2) ** 2)
                return sign * values[-1]

            search(from_mapping({"n_trials": 60, "sampler": sampler, "seed": seed}), space, bowl, direction)
            assert len(values) == 60
            worst.append(min(values))
        best[sampler] = sum(worst) / len(worst)
    assert best["tpe"] < best["random"] and best["tpe"] < 0.5


def test_a_search_with_a_seed_is_the_same_again() -> None:
    space = space_of("x=interval(0,1)")
    one, other, third = (
        search(from_mapping({"n_trials": 5, "seed": seed}), space, lambda x: x, "maximize") for seed in (7, 7, 8)
    )
    assert one == other != third


def test_batches_are_as_large_as_asked_and_numbered_through() -> None:
    batches = search(from_mapping({"n_trials": 7, "n_jobs": 3}), space_of("x=interval(0,1)"), lambda x: x, "maximize")
    assert [(first, len(points)) for first, points in batches] == [(0, 3), (3, 3), (6, 1)]


def test_a_grid_visits_each_point_once_and_ends() -> None:
    settings = from_mapping({"n_trials": 50, "sampler": "grid", "n_jobs": 4})
    batches = search(settings, space_of("x=1,2", "y=range(0,0.3,0.1)"), lambda x, y: x + y, "maximize")
    points = [tuple(point) for _, batch in batches for point in batch]
    assert sorted(points) == sorted((f"x={x}", f"y={y}") for x in (1, 2) for y in (0.0, 0.1, 0.2))


def test_a_point_that_is_asked_for_again_is_not_run_again() -> None:
    batches = search(from_mapping({"n_trials": 20}), space_of("x=1,2"), lambda x: x, "maximize")
    assert sorted(point for _, batch in batches for point in batch) == [["x=1"], ["x=2"]]


def test_failed_trials_are_told_so_and_do_not_end_the_search() -> None:
    settings, space = from_mapping({"n_trials": 30}), space_of("x=interval(0,10)")
    study = open_study(settings, space, ["maximize"], "test")
    batches: Batches = []
    run_search(settings, space, study, launcher(lambda x: None if x > 5 else math.nan if x > 4 else x, batches))
    states = [trial.state for trial in study.trials]
    assert len(states) == 30 and set(states) == {TrialState.COMPLETE, TrialState.FAIL}
    assert study.best_value <= 4
    for trial in study.trials:
        assert (trial.state is TrialState.COMPLETE) == (trial.params["x"] <= 4)
    assert best_line(study, ["accuracy"]).startswith(f"Best of the search: accuracy {study.best_value:.4g}: x=")


def test_a_search_goes_on_from_its_storage(tmp_path: Path) -> None:
    space = space_of("x=interval(0,1)")
    storage = {"storage": str(tmp_path / "search.db"), "seed": 1}
    first = search(from_mapping({**storage, "n_trials": 4}), space, lambda x: x, "maximize")
    assert search(from_mapping({**storage, "n_trials": 4}), space, lambda x: x, "maximize") == []
    more = search(from_mapping({**storage, "n_trials": 7, "sampler": "random"}), space, lambda x: x, "maximize")
    assert [number for number, _ in more] == [4, 5, 6]
    assert all(batch not in [points for _, points in first] for _, batch in more), "nothing is drawn twice"
    study = open_study(from_mapping(storage), space, ["maximize"], "test")
    assert [trial.user_attrs["run_dir"] for trial in finished(study)][0] == f"/runs/{first[0][1][0][0]}"


def test_a_grid_goes_on_with_what_failed_or_was_not_reached(tmp_path: Path) -> None:
    space, storage = space_of("x=range(0,6)"), {"storage": f"sqlite:///{tmp_path}/g.db", "sampler": "grid"}
    search(from_mapping({**storage, "n_trials": 4}), space, lambda x: None if x == 1 else x, "maximize")
    batches = search(from_mapping({**storage, "n_trials": 20}), space, lambda x: x, "maximize")
    assert sorted(point for _, batch in batches for point in batch) == [["x=1"], ["x=4"], ["x=5"]]


def test_an_interrupt_leaves_no_trial_running(tmp_path: Path) -> None:
    settings, space = from_mapping({"storage": str(tmp_path / "s.db")}), space_of("x=interval(0,1)")
    study = open_study(settings, space, ["maximize"], "test")

    def launch(points: Sequence[Sequence[str]], first: int) -> Sequence[Outcome]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(settings, space, study, launch)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]


def test_several_objectives_have_a_front() -> None:
    settings, space = (
        from_mapping({"sampler": "grid", "objective": ["accuracy", "macs_ratio"]}),
        space_of("x=range(0,5)"),
    )
    study = open_study(settings, space, ["maximize", "minimize"], "test")

    def launch(points: Sequence[Sequence[str]], first: int) -> list[Outcome]:
        numbers = [float(point[0].removeprefix("x=")) for point in points]
        return [Outcome((min(x, 3.0), x), "") for x in numbers]

    run_search(settings, space, study, launch)
    assert sorted(trial.params["x"] for trial in study.best_trials) == [0, 1, 2, 3]
    assert "4 trials that none beats" in best_line(study, settings.objective)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"directions": ["minimize"]},
            "holds a study 'test' of other objectives; give another hydra.sweeper.study_name",
        ),
        ({"space": space_of("x=1,2")}, "holds a study 'test' that searched x over other values; "),
    ],
)
def test_a_study_that_is_another_one_is_refused(tmp_path: Path, change: dict[str, object], line: str) -> None:
    settings = from_mapping({"storage": str(tmp_path / "s.db"), "n_trials": 1})
    search(settings, space_of("x=interval(0,1)"), lambda x: x, "maximize")
    arguments = {"settings": settings, "space": space_of("x=interval(0,1)"), "directions": ["maximize"], "name": "test"}
    with pytest.raises(UserError, match=line):
        open_study(**{**arguments, **change})  # type: ignore[arg-type]


def test_a_storage_that_can_t_be_opened_is_one_line(tmp_path: Path) -> None:
    for storage in (f"{tmp_path}/no/s.db", "mysql://nobody/x", "nonsense://x"):
        with pytest.raises(UserError) as caught:
            open_study(from_mapping({"storage": storage}), space_of("x=1,2"), ["maximize"], "test")
        assert str(caught.value).startswith(f"hydra.sweeper.storage: {storage} can't be opened: ")
        assert "\n" not in str(caught.value)
