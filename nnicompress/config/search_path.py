"""Hydra's search path: the user's `--config-dir` first, then recipes, then the shipped `conf/`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from nnicompress.config.recipes_source import RecipesSource
from nnicompress.paths import recipe_folders


@dataclass(frozen=True)
class _Search:
    config_dir: Path | None


# Plug-ins live in a registry that every Hydra application of the process reads; without a value here ours does nothing.
_active: ContextVar[_Search | None] = ContextVar("nnicompress_search", default=None)


class RecipesSearchPath(SearchPathPlugin):
    """Prepends to the search path: Hydra itself only appends `--config-dir`, where it never wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Insert `--config-dir` and the recipes before `main`, the shipped folder."""
        search = _active.get()
        if search is None:
            return
        # Files before folders and folders in their order: each prepend goes right before `main`.
        search_path.prepend(provider="recipe file", path="recipes://", anchor="main")
        for folder in recipe_folders(search.config_dir):
            search_path.prepend(provider="recipes", path=f"recipes://{folder}", anchor="main")
        if search.config_dir is not None:
            search_path.prepend(provider="--config-dir", path=f"file://{search.config_dir}", anchor="main")


@contextmanager
def searching(config_dir: Path | None) -> Iterator[None]:
    """Within the block Hydra finds recipes, and the files of `config_dir` before the shipped ones."""
    plugins = Plugins.instance()
    plugins.register(RecipesSource)
    plugins.register(RecipesSearchPath)
    token = _active.set(_Search(config_dir.resolve() if config_dir is not None else None))
    try:
        yield
    finally:
        _active.reset(token)
