"""The Python front door: what `nnicompress run` does, as one function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnicompress.config.compose import apart_from_results
from nnicompress.errors import ConfigError
from nnicompress.events import Listener, silent
from nnicompress.paths import recipe_override
from nnicompress.trust import allow

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nnicompress.report.record import Report


def run(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    config_dir: str | Path | None = None,
    trust: Iterable[str] = (),
    smoke: bool = False,
    fresh: bool = False,
    listener: Listener = silent,
) -> Report:
    """Take a recipe through all of its stages and return the report of its run.

    `recipe` is a recipe's name or a path to a YAML file, `overrides` are written as on the command line
    (`["seed=1", "compressor.targets.convs.sparse_ratio=0.6"]`), files in `config_dir` win over shipped ones, and
    `trust` names packages whose objects the recipe may name by `_target_`. `smoke` takes every stage through two
    batches, in a folder of its own. Stages that an earlier run in the same folder has finished, and for which nothing
    has changed, are reused, unless `fresh`. `listener` hears the run's events (`nnicompress.events`).

    May be called many times in one process, notebooks included.

    Raises:
        UserError: the input is wrong; nothing has been written.
        JobError: the run failed; its folder's `status.json` says where.
    """
    from nnicompress.checks.recipe import check_recipe

    with allow(trust):
        composed, _ = check_recipe([recipe_override(recipe), *overrides], config_dir=existing_folder(config_dir))
        return run_config(composed.config, smoke=smoke, fresh=fresh, listener=listener)


def run_config(
    config: DictConfig, *, smoke: bool, fresh: bool = False, explain: bool = False, listener: Listener = silent
) -> Report:
    """Run a composed and checked config."""
    from nnicompress.factory import build_job
    from nnicompress.pipeline.run import run_job

    if smoke:
        apart_from_results(config)
    # Whoever asks for a smoke run wants to see every stage work, not that it once did.
    return run_job(build_job(config, smoke=smoke), listener, fresh=fresh or smoke, explain=explain)


def existing_folder(config_dir: str | Path | None) -> Path | None:
    """`config_dir` as an absolute path; a ConfigError where there is no such folder."""
    if config_dir is None:
        return None
    folder = Path(config_dir).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"no folder {str(config_dir)!r}", key="--config-dir")
    return folder
