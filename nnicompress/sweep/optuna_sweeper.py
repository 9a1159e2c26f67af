"""The Hydra sweeper `nnicompress_optuna`, registered at run time: a search that every Hydra launcher can carry out."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from nnicompress.sweep.ledger import Ledger, Point
from nnicompress.sweep.search import Outcome, best_line, finished, open_study, run_search
from nnicompress.sweep.settings import directions, from_mapping
from nnicompress.sweep.space import read_space


class SearchTask(Protocol):
    """What this sweeper asks of the task that it runs, beside being called."""

    ledger: Ledger
    mode: str
    """`max` or `min`: whether a larger metric is better."""


class OptunaSweeper(Sweeper):
    """Asks Optuna for trials and launches them; settings as in `SearchSettings`."""

    # Hydra takes plug-ins of its own name space only. A package there would load into every Hydra application of the
    # environment; this one lies nowhere, see `register`.
    __module__ = "hydra_plugins.nnicompress_optuna"

    def __init__(self, **settings: Any) -> None:
        # They are read from the composed config, where they are plain values.
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.task: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over, and make the launcher."""
        self.hydra_context, self.config, self.task = hydra_context, config, task_function
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search over the `arguments` that hold several values."""
        assert self.hydra_context is not None and self.config is not None
        values = OmegaConf.to_container(self.config.hydra.sweeper, resolve=True)
        assert isinstance(values, dict)
        settings, task = from_mapping({str(key): value for key, value in values.items()}), self.task
        ledger: Ledger = task.ledger
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        space = read_space(parser.parse_overrides(arguments))
        study = open_study(settings, space, directions(settings.objective, task.mode), ledger.folder.name)
        earlier = finished(study)
        for trial in earlier:
            overrides = tuple(trial.user_attrs["overrides"])
            ledger.write(Point(trial.number, overrides, trial.user_attrs["run_dir"], ended=True))
        if earlier:
            print(f"the study {study.study_name!r} goes on: {len(earlier)} of {settings.n_trials} trials are finished")
        run_search(settings, space, study, self._launch)
        print(f"\n{best_line(study, settings.objective)}", flush=True)

    def _launch(self, overrides: Sequence[Sequence[str]], first: int) -> list[Outcome]:
        assert self.launcher is not None
        self.validate_batch_is_legal(overrides)
        return [_outcome(result) for result in self.launcher.launch(overrides, initial_job_idx=first)]


def register() -> None:
    """Let Hydra find the sweeper; its settings lie in `conf/hydra/sweeper/`."""
    try:
        importlib.import_module("hydra_plugins")
    except ImportError:  # no plug-in is installed
        parent = ModuleType("hydra_plugins")
        parent.__path__ = []
        sys.modules["hydra_plugins"] = parent
    # Hydra imports a plug-in by its name, even where it was given the class.
    sys.modules[OptunaSweeper.__module__] = sys.modules[__name__]
    Plugins.instance().register(OptunaSweeper)


def _outcome(result: JobReturn) -> Outcome:
    assert result.hydra_cfg is not None
    run_dir = str(result.hydra_cfg.hydra.runtime.output_dir)
    if result.status is not JobStatus.COMPLETED:
        return Outcome(None, run_dir)
    value = result.return_value
    return Outcome(tuple(value) if isinstance(value, tuple | list) else (float(value),), run_dir)
