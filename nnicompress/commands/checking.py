"""What `run` checks before anything is started: the recipe, or all points of a sweep, or those that stand for them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nnicompress.commands.arguments import Arguments
from nnicompress.errors import ConfigError, InputErrors, UserError, did_you_mean

if TYPE_CHECKING:
    from nnicompress.config.compose import Composed

OWN_SWEEPER = "nnicompress_optuna"
_PACKAGES = {
    "hydra/launcher=joblib": "hydra_plugins.hydra_joblib_launcher",
    "hydra/launcher=submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "hydra/launcher=submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
    f"hydra/sweeper={OWN_SWEEPER}": "optuna",
}


@dataclass
class Checked:
    """What the checks found out and the run needs."""

    added: frozenset[str] = frozenset()
    """Keys of overrides that no file writes: Hydra must be told to add them."""
    modes: set[str] = field(default_factory=set)
    """`max`, `min`: whether a larger metric is better, of all points."""
    folders: dict[str, Sequence[str]] = field(default_factory=dict)
    """The folder of each run, and its point."""


def sweeper(parsed: Arguments) -> str | None:
    """The sweeper that was chosen; None is Hydra's basic one."""
    chosen = [text.partition("=")[2] for text in parsed.overrides if text.startswith("hydra/sweeper=")]
    return chosen[-1] if chosen and chosen[-1] != "basic" else None


def check_all(parsed: Arguments) -> Checked:
    """Check the recipe, or every point of the sweep, and raise all errors at once.

    A search may have endlessly many points: points that stand for the others are checked, and for our own sweeper its
    settings. The points of others are checked when they start, too, for their settings may add to them.
    """
    from nnicompress.checks.recipe import check_recipe
    from nnicompress.config.compose import sweep_points
    from nnicompress.trust import allow

    points: Sequence[Sequence[str]] = [parsed.overrides]
    if parsed.multirun:
        _require_packages(parsed.overrides)
        if sweeper(parsed) is None:
            points = sweep_points(parsed.overrides, config_dir=parsed.config_dir)
        else:
            from nnicompress.sweep.points import representative_points

            own = sweeper(parsed) == OWN_SWEEPER
            if not own and not any(text.startswith("recipe=") for text in parsed.overrides):
                return Checked()  # another sweeper's settings may hold the choice of recipe
            points = representative_points(parsed.overrides, config_dir=parsed.config_dir, own=own)
    elif sweeper(parsed) is not None:
        raise UserError("hydra/sweeper goes with -m: nnicompress run -m ...")
    errors: dict[str, UserError] = {}
    checked = Checked()
    with allow(parsed.trust):
        for point in points:
            try:
                composed, _ = check_recipe(point, config_dir=parsed.config_dir)
                _note(composed, point, checked)
            except UserError as error:
                for one in error.errors if isinstance(error, InputErrors) else (error,):
                    errors[str(one)] = _no_plugin(one)
    if not errors and sweeper(parsed) == OWN_SWEEPER:
        errors = {str(error): error for error in _search_errors(parsed, checked, points)}
    if errors:
        raise InputErrors(tuple(errors.values()))
    return checked


def added(overrides: Sequence[str]) -> frozenset[str]:
    """The keys that Hydra must be told to add."""
    return frozenset(text.partition("=")[0][2:] for text in overrides if text.startswith("++"))


def _note(composed: Composed, point: Sequence[str], checked: Checked) -> None:
    checked.added |= added(composed.overrides)
    for text in composed.overrides:
        if text.startswith("++hydra.") and text not in point:  # the schema of a recipe knows nothing of these
            parent, _, name = text.partition("=")[0].removeprefix("++").rpartition(".")
            raise ConfigError(f"unknown key {name!r}; to add it all the same write {text[1:]}", key=parent)
    checked.modes.add(str(composed.config.evaluator.get("mode", "max")))
    folder = str(composed.config.run_dir)
    other = checked.folders.setdefault(folder, tuple(point))
    if other != tuple(point):
        different = " and ".join(" ".join(t for t in a if t not in b) for a, b in ((other, point), (point, other)))
        message = f"{different} would share the folder {folder}; give each point its own: 'run_dir=runs/mine-${{seed}}'"
        raise ConfigError(message, key="run_dir")


def _no_plugin(error: UserError) -> UserError:
    """Hydra's paragraph about a launcher or sweeper that there is not, as one line."""
    found = re.search(r"Could not find '(hydra/\w+)/([^']+)' Available options in '\S+': (.*?) provider=", str(error))
    if found is None:
        return error
    group, name, known = found[1], found[2], found[3].split()
    return ConfigError(f"no {group} named {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")


def _search_errors(parsed: Arguments, checked: Checked, points: Sequence[Sequence[str]]) -> list[UserError]:
    from nnicompress.config.compose import compose
    from nnicompress.sweep.settings import KEY, MEASURED_BY_EVALUATE, from_overrides

    errors: list[UserError] = []
    if len(checked.modes) > 1:
        errors.append(ConfigError("is min for some of the recipes and max for others", key="evaluator.mode"))
    objective = from_overrides(parsed.overrides).objective
    needed = sorted(MEASURED_BY_EVALUATE.intersection(objective))
    stages = compose(points[0], config_dir=parsed.config_dir).get("stages")
    if needed and "evaluate" not in stages:
        message = f"{needed[0]} is measured by the stage evaluate, which the recipe doesn't have"
        errors.append(ConfigError(message, key=f"{KEY}.objective"))
    return errors


def _require_packages(overrides: Sequence[str]) -> None:
    """A plug-in that is not installed would be an unknown option to Hydra."""
    for text in overrides:
        package = _PACKAGES.get(text)
        if package is not None and not _is_installed(package):
            raise UserError(f"{text} needs {package.rpartition('.')[2]}: pip install 'nnicompress[sweep]'")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is not there either
        return False
