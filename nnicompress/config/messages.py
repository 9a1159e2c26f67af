"""What Hydra, OmegaConf and YAML raise, in one line that names key, file and line, and the nearest right name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from nnicompress.config.locate import COMMAND_LINE, config_file
from nnicompress.config.recipes_source import GROUP, is_file_name
from nnicompress.config.yaml_lines import keys_of
from nnicompress.errors import ConfigError, did_you_mean
from nnicompress.paths import shown


class OverrideError(ConfigError):
    """A ConfigError that one override of the command line causes; `override` is that argument."""

    def __init__(self, message: str, *, override: str, key: str | None = None) -> None:
        self.override = override
        super().__init__(message, key=key, source=COMMAND_LINE)


class UnwrittenKey(OverrideError):
    """An override of a key that no file writes, below a key that one does: the schema knows whether it is right."""


@contextmanager
def explained(overrides: Sequence[str], loader: ConfigLoader | None = None) -> Iterator[None]:
    """Within the block, errors of Hydra, OmegaConf and YAML become ConfigErrors; all others pass unchanged."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise explain(error, overrides, loader) from error
    except (ValueError, AssertionError, OSError) as error:
        # Hydra checks defaults lists with plain ValueErrors and asserts; anybody else's are not ours to explain.
        if not _raised_in(error, "hydra", "omegaconf"):
            raise
        raise explain(error, overrides, loader) from error


def explain(error: Exception, overrides: Sequence[str], loader: ConfigLoader | None = None) -> ConfigError:
    """The ConfigError to show for `error`, which composing `overrides` raised.

    `loader` gives the names of groups and options; without it the message has no suggestions.
    """
    chain = list(_chain(error))
    if bare := next((text for text in overrides if not _key_of(text)), None):
        return OverrideError(f"{bare!r} is not an override; write KEY=VALUE, without spaces around '='", override=bare)
    for link in chain:
        if isinstance(link, ConfigError):
            return link
        if isinstance(link, yaml.MarkedYAMLError):
            return _yaml(link)
        if isinstance(link, OverrideParseException):
            return _unreadable(link)
        if isinstance(link, MissingConfigException) and loader is not None:
            return _missing_option(link, overrides, loader)
        if isinstance(link, (ConfigKeyError, ConfigAttributeError)) and link.full_key:
            return _unknown_key(link, overrides, loader)
        if isinstance(link, (InterpolationToMissingValueError, MissingMandatoryValue)):
            return _missing_value(link)
        if isinstance(link, (InterpolationKeyError, InterpolationResolutionError)):
            return ConfigError(_one_line(link), key=link.full_key or None)
    return _by_text(chain[0], overrides, loader) or _fallback(chain)


def _yaml(error: yaml.MarkedYAMLError) -> ConfigError:
    problem = error.problem or "is not YAML"
    hints = {
        "'\\t'": "; YAML is indented with spaces, not with tabs",
        "mapping values are not allowed here": "; a value that contains ': ' is written in quotes",
        "found duplicate key": "; a key is written once",
    }
    hint = next((hint for part, hint in hints.items() if part in problem), "")
    mark = error.problem_mark or error.context_mark
    source = f"{shown(Path(mark.name))}:{mark.line + 1}:{mark.column + 1}" if mark is not None else None
    return ConfigError(f"invalid YAML: {problem}{hint}", source=source)


def _unreadable(error: OverrideParseException) -> ConfigError:
    override = str(error.override)
    key, equals, value = override.partition("=")
    if not equals:
        return OverrideError(f"{override!r} is not an override; write KEY=VALUE", override=override)
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return OverrideError(
        f"cannot read {override!r}; text with spaces or any of ,'\"()[]{{}}:= is written in quotes: "
        f"'{key}=\"{quoted}\"'",
        override=override,
    )


def _unknown_key(
    error: ConfigKeyError | ConfigAttributeError, overrides: Sequence[str], loader: ConfigLoader | None
) -> ConfigError:
    key = str(error.full_key)
    parent = error.parent_node
    known = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    known = [name for name in known if name != "hydra"]
    head, _, last = key.rpartition(".")
    if not head and loader is not None:
        known += _groups(loader)
    override = next((text for text in overrides if _key_of(text) == key or _key_of(text).startswith(f"{key}.")), None)
    hint = did_you_mean(last, known).replace(" '", f" '{head}." if head else " '")
    message = f"unknown key {key!r}{hint}"
    mapping = next((text for text in overrides if key.startswith(f"{_key_of(text)}.") and "={" in text), None)
    if override is None and mapping is not None and not mapping.startswith(("+", "~")):
        return UnwrittenKey(message, override=mapping)
    if override is None:
        return ConfigError(message)
    if not hint:
        message += f"; to add a key that the recipe does not have, write +{override}"
    # A key below settings that no file writes, unless these are nearly a written name, or may have any name.
    misspelt = bool(did_you_mean(last, known)) or head.rpartition(".")[2] == "targets"
    below = head and (_key_of(override) == key or not misspelt)
    if below and isinstance(parent, DictConfig) and not override.startswith("~"):
        return UnwrittenKey(message, override=override)
    return OverrideError(message, override=override)


def _missing_value(error: OmegaConfBaseException) -> ConfigError:
    key = str(error.full_key or "")
    missing = re.search(r"Missing mandatory value: (\S+)|interpolation to missing.*'(\S+)'", str(error))
    named = next((group for group in missing.groups() if group), key) if missing else key
    return ConfigError(f"a value is required; pass {named}=VALUE", key=named)


def _missing_option(error: MissingConfigException, overrides: Sequence[str], loader: ConfigLoader) -> ConfigError:
    group, _, option = str(error.missing_cfg_file or "").partition("/")
    if group == GROUP:
        return _missing_recipe(option, overrides, loader)
    parent = re.match(r"In '([^']+)'", str(error))
    if group == "" or not loader.get_group_options(group):
        return _missing_group(str(error.missing_cfg_file), parent.group(1) if parent else "", loader)
    options = error.options or loader.get_group_options(group)
    message = _no_such(group, option, options)
    for text in overrides:
        if _key_of(text).split("@")[0] == group and option in text:
            return OverrideError(message, override=text)
    return ConfigError(message, source=_written_default(group, overrides, loader))


def _missing_recipe(name: str, overrides: Sequence[str], loader: ConfigLoader) -> ConfigError:
    recipes = loader.get_group_options(GROUP, ObjectType.CONFIG)
    if is_file_name(name):
        stem = Path(name).stem
        hint = f"; the recipe is called {stem!r}: recipe={stem}" if stem in recipes else ""
        message = f"no file {name!r}{hint}"
    elif Path(f"{name}.yaml").is_file():
        message = f"no recipe named {name!r}; for the file write recipe={name}.yaml"
    else:
        message = _no_such("recipe", name, recipes)
    for text in overrides:
        if _key_of(text) == GROUP:
            return OverrideError(message, override=text)
    return ConfigError(message)


def _missing_group(config_path: str, parent: str, loader: ConfigLoader) -> ConfigError:
    """A defaults list that chooses from a group that doesn't exist."""
    group, file = config_path.rpartition("/")[0], config_file(parent, loader.get_sources())
    source = None if file is None else _line_in(file, group) or shown(file)
    return ConfigError(f"no group {group!r}{did_you_mean(group, _groups(loader))}", key="defaults", source=source)


def _second_choice(group: str, overrides: Sequence[str], loader: ConfigLoader) -> ConfigError:
    """A recipe's `/model: mlp`, where the group has its option already."""
    file = _recipe_file(overrides, loader)
    source = None if file is None else _line_in(file, group) or shown(file)
    message = f"{group} has an option already; to choose another write 'override /{group}: OPTION'"
    return ConfigError(message, key="defaults", source=source)


def _by_text(error: BaseException, overrides: Sequence[str], loader: ConfigLoader | None) -> ConfigError | None:
    """What Hydra tells apart only in its text."""
    text = str(error)
    culprit = next(
        (override for override in overrides if f"'{override}'" in text or f"override {override}" in text), None
    )
    if "You must specify 'recipe'" in text:
        recipes = loader.get_group_options(GROUP, ObjectType.CONFIG) if loader is not None else []
        return ConfigError(f"no recipe given; write recipe=NAME{_known(recipes)}")
    if match := re.search(r"You must specify '([^']+)'", text):
        return ConfigError(f"a choice is required; pass {match.group(1)}=OPTION", key=match.group(1))
    if culprit is not None and ("Ambiguous value" in text or "requires --multirun" in text):
        key, _, value = culprit.partition("=")
        as_list = f", or write {key}=[{value}] for one list" if "Ambiguous" in text else ""
        return OverrideError(f"{culprit!r} gives several values: add -m to run each of them{as_list}", override=culprit)
    if (match := re.search(r"Multiple values for (\S+)\.", text)) and loader is not None:
        return _second_choice(match.group(1), overrides, loader)
    if "Config group override must be a string or a list. Got NoneType" in text:
        override = next((text for text in overrides if text.endswith("=null")), "")
        group = _key_of(override)
        return OverrideError(f"{override!r}: to choose no option write ~{group}", override=override)
    if match := re.search(r"Could not delete from config. '([^']+)' does not exist", text):
        return OverrideError(f"there is no {match.group(1)!r} to delete", override=_about(match.group(1), overrides))
    if match := re.search(r"An item is already at '([^']+)'", text):
        override = _about(match.group(1), overrides)
        message = f"{match.group(1)!r} is there already; write {override.lstrip('+')} without the +"
        return OverrideError(message, override=override)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_group(match.group(1), text, overrides, loader)
    if culprit is not None:
        return OverrideError(_one_line(error), override=culprit)
    return None


def _about(key: str, overrides: Sequence[str]) -> str:
    return next((text for text in overrides if _key_of(text) == key), key)


def _unknown_group(group: str, text: str, overrides: Sequence[str], loader: ConfigLoader | None) -> ConfigError:
    groups = _groups(loader) if loader is not None else []
    parent = re.match(r"In '([^']+)'", text)
    name = group.split("@")[0]
    hint = did_you_mean(name, groups)
    problem = f"no group {group!r}{hint}" if name not in groups else f"nothing to override at {group!r}"
    if parent is None or loader is None:
        override = next((text for text in overrides if _key_of(text) == group), None)
        return ConfigError(problem) if override is None else OverrideError(problem, override=override)
    file = config_file(parent.group(1), loader.get_sources())
    if file is None:
        return ConfigError(problem, key="defaults")
    return ConfigError(problem, key="defaults", source=_line_in(file, group) or shown(file))


def _written_default(group: str, overrides: Sequence[str], loader: ConfigLoader) -> str | None:
    """Where a file's defaults list chooses `group: option`: in the recipe, or in the primary config."""
    for file in (_recipe_file(overrides, loader), config_file("config", loader.get_sources())):
        if file is not None and file.is_file() and (source := _line_in(file, group)) is not None:
            return source
    return None


def _recipe_file(overrides: Sequence[str], loader: ConfigLoader) -> Path | None:
    recipe = next((text.partition("=")[2] for text in overrides if _key_of(text) == GROUP), "")
    return config_file(f"{GROUP}/{recipe}", loader.get_sources())


def _line_in(file: Path, group: str) -> str | None:
    """`file:line` of the entry of the defaults list that is about `group`."""
    for key, source in keys_of(file):
        entry = re.match(r"defaults\.\d+\.(.+)", key)
        if entry and entry.group(1).split()[-1].lstrip("/").split("@")[0] == group.split("@")[0]:
            return source
    return None


def _fallback(chain: Sequence[BaseException]) -> ConfigError:
    innermost = chain[-1]
    key = innermost.full_key if isinstance(innermost, OmegaConfBaseException) else None
    return ConfigError(_one_line(next((link for link in chain if str(link).strip()), innermost)), key=key or None)


def _one_line(error: BaseException) -> str:
    """The first paragraph of a message, in one line; OmegaConf's `full_key:` and `object_type=` lines left out."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [
        line
        for line in lines
        if line and not line.startswith(("full_key:", "object_type=", "Config search path", "See http"))
    ]
    return " ".join(kept) or type(error).__name__


def _no_such(kind: str, name: str, known: Sequence[str]) -> str:
    """`no compressor named 'taylorf'; did you mean 'taylorfo'? (known: l1, taylorfo)`."""
    return f"no {kind} named {name!r}{did_you_mean(name, known)}{_known(known)}"


def _known(names: Sequence[str]) -> str:
    return f" (known: {', '.join(names)})" if names else ""


def _groups(loader: ConfigLoader) -> list[str]:
    return [group for group in loader.list_groups("") if group != "hydra"]


def _key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _raised_in(error: BaseException, *packages: str) -> bool:
    traceback, module = error.__traceback__, ""
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        traceback = traceback.tb_next
    return module.split(".")[0] in packages
