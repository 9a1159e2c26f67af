"""A search with Optuna's ask-and-tell interface: trials in batches through whatever launches them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from nnicompress.errors import ConfigError, UserError
from nnicompress.sweep.settings import KEY, SearchSettings
from nnicompress.sweep.space import Space, grid_values


@dataclass(frozen=True)
class Outcome:
    """What became of a trial's run; `values` are None where it failed."""

    values: tuple[float, ...] | None
    run_dir: str


Direction = Literal["minimize", "maximize"]
Launch = Callable[[Sequence[Sequence[str]], int], Sequence[Outcome]]
"""Overrides of several runs, and the number of the first -> what became of them, in the same order."""


def open_study(settings: SearchSettings, space: Space, directions: Sequence[Direction], name: str) -> Study:
    """A new study, or the one of this name in the storage.

    Raises:
        UserError: the storage can't be opened, or the study in it is another one.
    """
    from sqlalchemy.exc import SQLAlchemyError

    name = settings.study_name or name
    try:
        with _quiet():
            study = optuna.create_study(
                storage=settings.storage_url, study_name=name, directions=list(directions), load_if_exists=True
            )
    except (SQLAlchemyError, ImportError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{settings.storage} can't be opened: {reason}", key=f"{KEY}.storage") from error
    other = f"{settings.storage} holds a study {name!r}"
    way_out = f"give another {KEY}.study_name, or another storage"
    if [direction.name.lower() for direction in study.directions] != list(directions):
        raise UserError(f"{other} of other objectives; {way_out}")
    for trial in study.get_trials(deepcopy=False):
        for key, distribution in trial.distributions.items():
            if key not in space.axes:
                continue
            try:
                check_distribution_compatibility(distribution, space.axes[key])
            except ValueError as error:
                raise UserError(f"{other} that searched {key} over other values; {way_out}") from error
    study.sampler = _sampler(settings, len(study.get_trials(deepcopy=False)))
    return study


def run_search(settings: SearchSettings, space: Space, study: Study, launch: Launch) -> None:
    """Ask for trials, `n_jobs` at a time, launch them and tell what came out, until `n_trials` have finished."""
    known = {tuple(trial.user_attrs["overrides"]): _outcome(trial) for trial in finished(study)}
    left = settings.n_trials - len(finished(study))
    if settings.sampler == "grid":
        left = _enqueue_grid(study, space, left)
    with _quiet():
        while left > 0:
            trials = [study.ask(space.axes) for _ in range(min(settings.n_jobs, left))]
            left -= len(trials)
            try:
                _run_batch(study, space, trials, launch, known)
            finally:
                _fail_open(study, trials)


def finished(study: Study) -> list[FrozenTrial]:
    """The trials that have a result."""
    return [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if "overrides" in t.user_attrs]


def best_line(study: Study, objectives: Sequence[str]) -> str:
    """What the search found, in a sentence for each best trial: one, or with several objectives a front of them."""
    if not finished(study):
        return "The search has found nothing: no trial finished."
    trials = [study.best_trial] if len(objectives) == 1 else study.best_trials
    lines = []
    for trial in trials:
        values = ", ".join(f"{name} {value:.4g}" for name, value in zip(objectives, trial.values, strict=True))
        lines.append(f"{values}: {' '.join(f'{key}={value}' for key, value in trial.params.items())}")
    front = f"Best of the search, {len(lines)} trials that none beats in all objectives:\n  "
    return f"Best of the search: {lines[0]}" if len(lines) == 1 else front + "\n  ".join(lines)


def _run_batch(
    study: Study, space: Space, trials: Sequence[Trial], launch: Launch, known: dict[tuple[str, ...], Outcome]
) -> None:
    """One run for each point that has no result yet: a sampler may ask for the same one again."""
    points = [tuple(space.overrides(trial.params)) for trial in trials]
    new = [point for point in dict.fromkeys(points) if point not in known]
    if new:
        known.update(zip(new, launch([list(point) for point in new], trials[0].number), strict=True))
    for trial, point in zip(trials, points, strict=True):
        outcome = known[point]
        trial.set_user_attr("overrides", list(point))
        trial.set_user_attr("run_dir", outcome.run_dir)
        if outcome.values is None or not all(map(math.isfinite, outcome.values)):
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, list(outcome.values))


def _fail_open(study: Study, trials: Sequence[Trial]) -> None:
    """After an interrupt: a trial that stays `running` would be one for ever."""
    for trial in trials:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def _enqueue_grid(study: Study, space: Space, most: int) -> int:
    """Put at most `most` points of the grid that have no result before the study; returns how many there are."""
    axes = {key: grid_values(distribution) for key, distribution in space.axes.items()}
    assert all(values is not None for values in axes.values()), "checked before the search"
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    seen = [trial.params for trial in finished(study)]
    seen += [trial.system_attrs.get("fixed_params", {}) for trial in waiting]
    count = min(len(waiting), max(most, 0))
    for values in itertools.product(*(values or [] for values in axes.values())):
        params = dict(zip(axes, values, strict=True))
        if count < most and params not in seen:
            study.enqueue_trial(params)
            count += 1
    return count


def _sampler(settings: SearchSettings, trials: int) -> BaseSampler:
    # A search that goes on must not draw again what it drew before.
    seed = None if settings.seed is None else settings.seed + trials
    if settings.sampler == "tpe":
        return TPESampler(seed=seed, constant_liar=settings.n_jobs > 1)
    return RandomSampler(seed=seed)


def _outcome(trial: FrozenTrial) -> Outcome:
    return Outcome(tuple(trial.values), str(trial.user_attrs["run_dir"]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log lines repeat what is printed anyway."""
    before: Any = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
