"""From a recipe's name and overrides to one composed config, its folder's name, and where each key was written."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra import version as hydra_version
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from packaging.version import Version

from nnicompress.config.locate import COMMAND_LINE, Origin, config_file, locate
from nnicompress.config.messages import OverrideError, UnwrittenKey, explained
from nnicompress.config.resolvers import register
from nnicompress.config.search_path import searching
from nnicompress.config.yaml_lines import keys_of
from nnicompress.errors import ConfigError, InputErrors, UserError
from nnicompress.paths import shipped, shown, summary

PRIMARY = "config"
VERSION_BASE = "1.3"
_RESOLVER = "nnicompress.run_dir"
# What doesn't change the result of a run doesn't change its folder.
_NOT_HASHED = frozenset({"name", "run_dir", "summary", "expected", "save_every", "logging", "hydra"})


register()  # Whoever composes a config resolves it in the same process.


@dataclass(frozen=True)
class Composed:
    """A composed recipe with its origin, and the overrides as Hydra took them."""

    config: DictConfig
    origin: Origin
    overrides: tuple[str, ...]


def compose(recipe_and_overrides: Sequence[str], *, config_dir: Path | None = None) -> DictConfig:
    """The config of `["recipe=NAME", "seed=1", ...]`; see `compose_with_origin`."""
    return compose_with_origin(recipe_and_overrides, config_dir=config_dir).config


def compose_with_origin(overrides: Sequence[str], *, config_dir: Path | None = None) -> Composed:
    """Compose a recipe, with `name` (the recipe's), `summary` and `run_dir` (never null) filled in.

    Works many times in one process and inside another Hydra application. Raises ConfigError, or InputErrors where
    several overrides are wrong.
    """
    composed, errors = compose_what_is_right(overrides, config_dir=config_dir)
    if errors:
        raise errors[0] if len(errors) == 1 else InputErrors(errors)
    assert composed is not None
    return composed


def compose_what_is_right(
    overrides: Sequence[str], *, config_dir: Path | None = None
) -> tuple[Composed | None, list[UserError]]:
    """Compose a recipe without the overrides that are wrong, and say what is wrong with them.

    A setting that no file writes can be given like any other, without Hydra's `+`: a key below a written one is
    added, and the schema, which knows every key, says whether it is right.
    """
    remaining, errors = list(overrides), list[UserError]()
    with searching(config_dir), _own_hydra():
        while True:
            try:
                return _compose(remaining), errors
            except UnwrittenKey as error:
                remaining[remaining.index(error.override)] = f"++{error.override}"
            except ConfigError as error:
                errors.append(error)
                if (culprit := _culprit(error, remaining)) is None:
                    return None, errors
                remaining.remove(culprit)


def settle(config: DictConfig, recipe: str) -> None:
    """Fill in `name` and, where it is null, `run_dir`: `runs/<recipe>-<8 hexadecimal digits of the settings>`."""
    with open_dict(config):
        config.name = recipe
        if config.get("run_dir") is None:
            config.run_dir = _automatic_folder(config, recipe)


def _automatic_folder(config: DictConfig, recipe: str) -> str:
    return str(Path("runs") / f"{recipe}-{_digest(config)}")


def only_stages(composed: Composed, kept: Sequence[str], added: str) -> None:
    """Leave a recipe its stages `kept` and `added`, the last (made where missing), without compressor and bounds.

    The folder is another one than that of the recipe's own run, whose stages are not ours to remove: `FOLDER-<added>`
    where one was given, else `runs/<recipe>-<added>-<8 hexadecimal digits of the settings>`, those of `added` left out:
    it changes nothing of what the stages before it leave.
    """
    config, recipe = composed.config, composed.origin.recipe
    given = config.run_dir if config.run_dir != _automatic_folder(config, recipe) else None
    stages = config.get("stages")
    items = dict(stages.items_ex(resolve=False)) if isinstance(stages, DictConfig) else {}
    before = {name: stage for name, stage in items.items() if name in kept}
    with open_dict(config):
        config.compressor, config.expected, config.stages = None, {}, before
        config.run_dir = _automatic_folder(config, f"{recipe}-{added}") if given is None else f"{given}-{added}"
        config.stages = {**before, added: {} if items.get(added) is None else items[added]}


@contextmanager
def run_dir_resolver(*, smoke: bool) -> Iterator[None]:
    """Within the block, `${nnicompress.run_dir:}` is the absolute folder of the run of the config it stands in."""

    def run_dir(*, _root_: DictConfig) -> str:
        config = copy.deepcopy(_root_)
        choice = str(config.hydra.runtime.choices["recipe"])
        with open_dict(config):
            del config["hydra"]
        settle(config, recipe_name(choice))
        if smoke:
            apart_from_results(config)
        return str(Path(str(config.run_dir)).absolute())

    OmegaConf.register_new_resolver(_RESOLVER, run_dir, replace=True)
    try:
        yield
    finally:
        OmegaConf.clear_resolver(_RESOLVER)


def apart_from_results(config: DictConfig) -> None:
    """Give a smoke run a folder of its own, so that it never takes the place of a result."""
    config.run_dir = f"{config.run_dir}-smoke"


def recipe_name(choice: str) -> str:
    """The name of `recipe=choice` in a folder's name: `vision/mine` -> `vision-mine`, `/a/b.yaml` -> `b`."""
    return Path(choice).stem if choice.endswith((".yaml", ".yml")) else choice.replace("/", "-")


def _compose(overrides: list[str]) -> Composed:
    loader: ConfigLoader = GlobalHydra.instance().config_loader()
    with explained(overrides, loader):
        config = hydra_compose(PRIMARY, overrides=overrides, return_hydra_config=True)
        choices = dict(config.hydra.runtime.choices)
        choice = str(choices["recipe"])
        with open_dict(config):
            del config["hydra"]
        defaults = loader.compute_defaults_list(PRIMARY, overrides, RunMode.RUN)
        sources = loader.get_sources()
        written = locate(defaults.defaults, sources, defaults.config_overrides)
    origin = Origin(recipe_name(choice), config_file(f"recipe/{choice}", sources), written)
    settle(config, origin.recipe)
    options = {group: config_file(f"{group}/{option}", sources) for group, option in choices.items()}
    _drop_replaced(config, {group: shown(file) for group, file in options.items() if file is not None}, written)
    if origin.file is not None:
        _follow_file(config, origin.file)
    return Composed(config, origin, tuple(overrides))


def _drop_replaced(config: DictConfig, options: Mapping[str, str], written: Mapping[str, str]) -> None:
    """Where a recipe names a `_target_` of its own, the arguments of the option that it replaces go.

    `model: {_target_: my_model.Net}` in a recipe means that model, not it with the default option's arguments.
    """
    for group, option in options.items():
        target = written.get(f"{group}._target_", COMMAND_LINE)
        node = config.get(group)
        if target == COMMAND_LINE or target.startswith(f"{option}:") or not isinstance(node, DictConfig):
            continue
        with open_dict(config):
            for key in [str(key) for key in node]:
                if written.get(f"{group}.{key}", "").startswith(f"{option}:"):
                    del node[key]


def _follow_file(config: DictConfig, file: Path) -> None:
    """What Hydra loses of a recipe's file: its first comment, and the order of its stages.

    Hydra merges a preset placed into a stage (`/compressor@stages.prune.compressor: l1`) before the recipe's own keys.
    """
    order = [
        key.removeprefix("stages.") for key, _ in keys_of(file) if key.count(".") == 1 and key.startswith("stages.")
    ]
    with open_dict(config):
        config.summary = config.get("summary") or summary(file)
        stages = config.get("stages")
        if isinstance(stages, DictConfig):
            position = {name: number for number, name in enumerate(order)}
            position.setdefault("start", -1)  # it takes the place of train, also where the command line adds it
            items = dict(
                sorted(stages.items_ex(resolve=False), key=lambda item: position.get(str(item[0]), len(order)))
            )
            config.stages = items


def _culprit(error: ConfigError, overrides: Sequence[str]) -> str | None:
    """The override that caused `error`, where the rest can be composed without it: any but the choice of recipe."""
    if isinstance(error, OverrideError) and error.override in overrides and not error.override.startswith("recipe="):
        return error.override
    return None


def _digest(config: DictConfig) -> str:
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:  # an interpolation that leads nowhere: `check` says so, together with all else
        values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    relevant = {str(key): value for key, value in values.items() if key not in _NOT_HASHED}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode()).hexdigest()[:8]


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra initialised for us, and afterwards as it was: the caller may be a Hydra application itself."""
    outer, base = GlobalHydra.instance().hydra, hydra_version.getbase()
    GlobalHydra.instance().clear()
    try:
        with full_errors(), initialize_config_dir(str(shipped("conf")), version_base=VERSION_BASE):
            yield
    finally:
        GlobalHydra.instance().hydra = outer
        if isinstance(base, Version):
            hydra_version.VersionBase.instance().setbase(base)


@contextmanager
def full_errors() -> Iterator[None]:
    """Hydra raises its exceptions in place of printing them and exiting."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def sweep_points(overrides: Sequence[str], *, config_dir: Path | None = None) -> list[list[str]]:
    """The overrides of each point of a sweep, as Hydra's basic sweeper makes them: the product of all lists.

    Raises ConfigError for an override that can't be read, or that no finite list of points answers (`interval`).
    """
    with searching(config_dir), _own_hydra():
        loader = GlobalHydra.instance().config_loader()
        with explained(overrides, loader):
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
            axes: dict[str, list[str]] = {}
            for override in parsed:
                key = override.get_key_element()
                if not override.is_sweep_override():
                    axes[key] = [override.input_line or ""]
                elif override.is_discrete_sweep():
                    axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
                else:
                    message = f"{override.input_line!r} is no list of values; Hydra's basic sweeper needs one"
                    raise OverrideError(message, override=override.input_line or "")
    if empty := next((key for key, values in axes.items() if not values), None):
        raise ConfigError("the sweep has no values", key=empty, source=COMMAND_LINE)
    return [list(point) for point in itertools.product(*axes.values())]
