"""Where each key of a composed recipe was written: file and line, or the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigSource

from nnicompress.config.recipes_source import RecipesSource
from nnicompress.config.yaml_lines import keys_of
from nnicompress.paths import shown

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Origin:
    """The recipe that was chosen, and where each dotted key was last written.

    `recipe` is the recipe's name as it appears in the name of the run's folder, `file` the recipe's file.
    """

    recipe: str
    file: Path | None
    sources: Mapping[str, str]

    def source_of(self, key: str) -> str | None:
        """`recipes/x.yaml:14` or `command line`, for `key` or its nearest ancestor that was written; else None."""
        parts = _normal(key).split(".")
        for length in range(len(parts), 0, -1):
            source = self.sources.get(".".join(parts[:length]))
            if source is not None:
                return source
        return None


def locate(
    defaults: Iterable[ResultDefault], sources: Sequence[ConfigSource], overrides: Iterable[Override]
) -> dict[str, str]:
    """The source of every key, from the composed files in their order and then the command line's overrides."""
    found: dict[str, str] = {}
    for default in defaults:
        file = config_file(default.config_path or "", sources)
        if file is not None:
            package = default.package or ""
            if package:
                found[package] = f"{shown(file)}:1"
            found.update({f"{package}.{key}" if package else key: source for key, source in keys_of(file)})
    for override in overrides:
        if not override.is_delete():
            key = _normal(override.key_or_group)
            found.update({name: COMMAND_LINE for name in _flattened(key, override.value())})
            parts = key.split(".")
            for length in range(1, len(parts)):  # settings that no file writes come from here, too
                found.setdefault(".".join(parts[:length]), COMMAND_LINE)
    return found


def config_file(config_path: str, sources: Sequence[ConfigSource]) -> Path | None:
    """The file that Hydra reads for `config_path` (`compressor/taylorfo`); None for what lies in no folder."""
    for source in sources:
        if source.is_config(config_path):
            if isinstance(source, RecipesSource):
                return source.file(config_path)
            if source.scheme() == "file":
                return Path(source.path) / (config_path if config_path.endswith(".yaml") else f"{config_path}.yaml")
            return None
    return None


def _flattened(key: str, value: Any) -> Iterator[str]:
    yield key
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, child in items:
        yield from _flattened(f"{key}.{name}", child)


def _normal(key: str) -> str:
    """`groups[0].lr` and `a[b].c` in dots alone, as Hydra accepts both."""
    return re.sub(r"\[([^\]]*)\]", r".\1", key).strip(".").replace("/", ".")
