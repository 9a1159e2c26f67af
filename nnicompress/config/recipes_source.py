"""A Hydra config source that serves `recipes/NAME.yaml`, or any YAML file, as the config group `recipe`."""

from __future__ import annotations

from pathlib import Path

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf, open_dict

from nnicompress.config.yaml_lines import keys_of
from nnicompress.errors import ConfigError
from nnicompress.paths import shown
from nnicompress.trust import make_importable

GROUP = "recipe"
_SUFFIXES = (".yaml", ".yml")


def is_file_name(recipe: str) -> bool:
    """Whether `recipe=...` names a file rather than a recipe of one of the folders."""
    return recipe.endswith(_SUFFIXES)


class RecipesSource(ConfigSource):
    """`recipes://FOLDER` serves the recipes of a folder; `recipes://` serves files named by their path."""

    @staticmethod
    def scheme() -> str:
        """The scheme of the search path elements that this source serves."""
        return "recipes"

    def available(self) -> bool:
        """Whether the folder is there."""
        return not self.path or Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Whether `config_path` is the group `recipe` or a folder of recipes in it."""
        if config_path in ("", GROUP):
            return True
        name = _name(config_path)
        return bool(self.path and name) and (Path(self.path) / str(name)).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Whether there is a recipe for `config_path`."""
        file = self.file(config_path)
        return file is not None and file.is_file()

    def file(self, config_path: str) -> Path | None:
        """The file of `recipe/NAME`, which need not exist; None where `config_path` is none of this source's."""
        name = _name(config_path)
        if not name or is_file_name(name) != (not self.path):
            return None
        return Path(self.path) / f"{name}.yaml" if self.path else Path(name).expanduser()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names of recipes and of folders of recipes directly below `config_path`."""
        groups, configs = results_filter is not ObjectType.CONFIG, results_filter is not ObjectType.GROUP
        if config_path == "":
            return [GROUP] if groups else []
        if not self.path:
            return []
        children = (Path(self.path) / str(_name(config_path) or "")).iterdir()
        return sorted(
            child.stem if child.is_file() else child.name
            for child in children
            if (configs and child.is_file() and child.suffix == ".yaml") or (groups and child.is_dir())
        )

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a recipe; its keys belong to the top level, whatever its header says of a package."""
        file = self.file(config_path)
        if file is None or not file.is_file():
            raise ConfigLoadError(f"no recipe {config_path}")
        make_importable(file.resolve().parent)  # a recipe may name code that lies beside it
        try:
            with file.open(encoding="utf-8") as stream:  # a stream, so that YAML errors name the file
                config = OmegaConf.load(stream)
        except (OSError, UnicodeDecodeError) as error:  # OmegaConf raises OSError for a scalar
            raise ConfigError(f"cannot be read as a recipe: {error}", source=shown(file)) from error
        if not isinstance(config, DictConfig):
            raise ConfigError("a recipe is a mapping of settings, not a list", source=shown(file))
        _settle_defaults(config, file)
        return ConfigResult(
            provider=self.provider, path=f"{self.scheme()}://{self.path}", config=config, header={"package": "_global_"}
        )


def _name(config_path: str) -> str | None:
    return config_path[len(GROUP) + 1 :] if config_path.startswith(f"{GROUP}/") else None


def _settle_defaults(config: DictConfig, file: Path) -> None:
    """Check the defaults list, and move `override /group: option` behind the other entries.

    Hydra demands that order and says little of what is wrong; a recipe may write overrides anywhere.
    """
    if "defaults" not in config:
        return
    entries = OmegaConf.to_container(config, resolve=False)["defaults"]  # type: ignore[index,call-overload]
    if not isinstance(entries, list):
        raise _defaults_error("defaults", f"is a list: {_ENTRY}", file)
    for index, entry in enumerate(entries):
        if not isinstance(entry, str) and not _is_choice(entry):
            raise _defaults_error(f"defaults.{index}", f"each entry is one choice: {_ENTRY}", file)
        if isinstance(entry, dict) and (group := next(iter(entry)))[0] != "/" and " " not in group:
            wanted = f"write 'override /{group}: {entry[group]}' in place of '{group}: {entry[group]}'"
            raise _defaults_error(f"defaults.{index}", wanted, file)
    with open_dict(config):
        config.defaults = sorted(entries, key=_is_override)


_ENTRY = "- override /GROUP: OPTION"


def _is_choice(entry: object) -> bool:
    if not isinstance(entry, dict) or len(entry) != 1:
        return False
    ((group, option),) = entry.items()
    return isinstance(group, str) and group != "" and (option is None or isinstance(option, (str, list)))


def _is_override(entry: object) -> bool:
    return isinstance(entry, dict) and any("override" in str(key).split()[:-1] for key in entry)


def _defaults_error(key: str, message: str, file: Path) -> ConfigError:
    return ConfigError(message, key="defaults", source=dict(keys_of(file))[key])
