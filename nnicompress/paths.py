"""Where the shipped configuration lies, and which recipes and group options there are; standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_RECIPE_GROUPS = {"recipe", "recipes", "hydra"}


def shipped(name: str) -> Path:
    """The shipped folder `name` (`conf`, `recipes`): inside an installed package, beside it in the repository."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def recipe_folders(config_dir: Path | None = None) -> tuple[Path, ...]:
    """Folders of recipes, the first one wins: `--config-dir`, then `./recipes`, then what is shipped."""
    candidates = [Path.cwd() / "recipes", shipped("recipes")]
    if config_dir is not None:
        candidates = [config_dir / "recipes", config_dir / "recipe", *candidates]
    return _existing(candidates)


def config_folders(config_dir: Path | None = None) -> tuple[Path, ...]:
    """Folders of config groups, the first one wins."""
    return _existing([shipped("conf")] if config_dir is None else [config_dir, shipped("conf")])


def find_recipes(config_dir: Path | None = None) -> dict[str, Path]:
    """Every recipe by name (`taylorfo_resnet`, `vision/mine`), sorted."""
    return _named_files(recipe_folders(config_dir))


def find_groups(config_dir: Path | None = None) -> dict[str, dict[str, Path]]:
    """Every config group with its options: `{"model": {"resnet20": Path(...)}}`, sorted."""
    folders = config_folders(config_dir)
    names = {child.name for folder in folders for child in folder.iterdir() if child.is_dir() and _is_group(child)}
    groups = {name: _named_files([folder / name for folder in folders]) for name in sorted(names)}
    return {name: options for name, options in groups.items() if options}


def summary(file: Path) -> str:
    """The first comment line of a YAML file (Hydra's `# @package` lines left out), or an empty string."""
    for line in leading_comments(file):
        if line and not line.startswith("@"):
            return line
    return ""


def shown(file: Path) -> str:
    """`file` as a person would write it: relative to the current directory where it lies below."""
    resolved, here = file.resolve(), Path.cwd().resolve()
    return resolved.relative_to(here).as_posix() if resolved.is_relative_to(here) else str(resolved)


def recipe_override(recipe: str | Path) -> str:
    """`recipe=...` for a recipe's name or file, quoted where Hydra's grammar needs it."""
    text = str(recipe)
    if re.fullmatch(r"[\w/+.@%?*|-]+", text):
        return f"recipe={text}"
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"recipe='{escaped}'"


def _is_group(folder: Path) -> bool:
    return folder.name not in _RECIPE_GROUPS and not folder.name.startswith((".", "_"))


def _existing(folders: Sequence[Path]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir()))


def _named_files(folders: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            found.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
    return dict(sorted(found.items()))


def leading_comments(file: Path) -> Iterator[str]:
    """The lines of comment that a YAML file begins with, without their `#`."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip() and not line.startswith("#"):
                return
            yield line.lstrip("#").strip()
