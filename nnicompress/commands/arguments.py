"""The arguments of commands that take a recipe: our own options, Hydra's options, and overrides, told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnicompress.errors import ConfigError, UserError, did_you_mean
from nnicompress.paths import recipe_override

_SHORT = {"-m": "--multirun", "-c": "--cfg", "-p": "--package", "-i": "--info", "-r": "--run", "-cd": "--config-dir",
          "-sc": "--shell-completion", "-cp": "--config-path", "-cn": "--config-name"}  # fmt: skip
_HYDRA_FLAGS = {"--multirun", "--resolve", "--run", "--shell-completion", "--hydra-help"}
_HYDRA_VALUES = {"--cfg": ("job", "hydra", "all"), "--package": ()}
_RUN_FLAGS = ("--smoke", "--fresh", "--explain")
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_REFUSED = {
    "--experimental-rerun": "it would unpickle a file, which can run any code; run the recipe again instead",
    "--config-path": "use --config-dir, whose files win over the shipped ones",
    "--config-name": "choose a recipe instead: recipe=NAME, or a path to a YAML file",
}
_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")


@dataclass(frozen=True)
class Arguments:
    """What the user asked for. `overrides` begin with the recipe where it was given without `recipe=`."""

    overrides: tuple[str, ...] = ()
    hydra_options: tuple[str, ...] = ()
    config_dir: Path | None = None
    trust: tuple[str, ...] = ()
    smoke: bool = False
    fresh: bool = False
    explain: bool = False

    @property
    def multirun(self) -> bool:
        """Whether this is a sweep."""
        return "--multirun" in self.hydra_options or "hydra.mode=MULTIRUN" in self.overrides

    @property
    def inspects(self) -> bool:
        """Whether Hydra is asked to print something, and nothing is to run."""
        return bool({"--cfg", "--info", "--shell-completion", "--hydra-help"} & set(self.hydra_options))


def parse_recipe(argv: Sequence[str], *, command: str, hydra: bool = False, smoke: bool = False) -> Arguments:
    """Arguments of a command that takes a recipe and overrides; the first word may be the recipe without `recipe=`."""
    arguments = parse(argv, command=command, hydra=hydra, smoke=smoke)
    return replace(arguments, overrides=tuple(_checked(_with_recipe(list(arguments.overrides)))))


def parse(
    argv: Sequence[str], *, command: str, hydra: bool = False, smoke: bool = False, trust: bool = True
) -> Arguments:
    """Tell options from the other words, wherever they stand; Hydra itself only accepts options first.

    `hydra`: Hydra's own options are allowed; `smoke`: so are those of a run alone; `trust`: `--trust`. Raises
    UserError for any other option.
    """
    known = {"--config-dir"} | (set(_RUN_FLAGS) if smoke else set()) | ({"--trust"} if trust else set())
    if hydra:
        known |= _HYDRA_FLAGS | {*_HYDRA_VALUES, "--info"}
    found = Arguments()
    words = _split_equals(argv)
    for word in words:
        option = _SHORT.get(word, word)
        if not option.startswith("-"):
            found = replace(found, overrides=(*found.overrides, word))
        elif option in _REFUSED:
            raise UserError(f"{option} is refused: {_REFUSED[option]}")
        elif option not in known:
            raise UserError(f"nnicompress {command} has no option {word!r}{did_you_mean(word, known)}")
        elif option == "--config-dir":
            found = replace(found, config_dir=_folder(_value(option, words)))
        elif option == "--trust":
            found = replace(found, trust=(*found.trust, _value(option, words)))
        elif option in _RUN_FLAGS:
            flag: dict[str, Any] = {option[2:]: True}
            found = replace(found, **flag)
        else:
            found = replace(found, hydra_options=(*found.hydra_options, *_hydra_option(option, words)))
    if "--resolve" in found.hydra_options and "--cfg" not in found.hydra_options:
        raise UserError("--resolve goes with --cfg job, as in: --cfg job --resolve")
    return found


def _hydra_option(option: str, words: _Words) -> tuple[str, ...]:
    if option == "--info":  # its value is optional, and argparse would take an override for it
        return option, words.take_if(_INFO) or "all"
    if option in _HYDRA_VALUES:
        return option, _choice(option, _value(option, words), _HYDRA_VALUES[option])
    return (option,)


class _Words(Iterator[str]):
    """Words of a command line, with a look at the next one."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words, self._next = words, 0

    def __next__(self) -> str:
        if self._next >= len(self._words):
            raise StopIteration
        self._next += 1
        return self._words[self._next - 1]

    def take_if(self, known: Sequence[str]) -> str | None:
        """The next word where it is one of `known`."""
        if self._next < len(self._words) and self._words[self._next] in known:
            return next(self)
        return None


def _split_equals(argv: Sequence[str]) -> _Words:
    """`--config-dir=DIR` as two words."""
    words: list[str] = []
    for word in argv:
        words += word.split("=", 1) if word.startswith("--") and "=" in word else [word]
    return _Words(words)


def _value(option: str, words: _Words) -> str:
    value = next(words, None)
    if value is None or value.startswith("--"):
        raise UserError(f"{option} needs a value")
    return value


def _choice(option: str, value: str, choices: Sequence[str]) -> str:
    if choices and value not in choices:
        raise UserError(f"{option} is one of {', '.join(choices)}, not {value!r}")
    return value


def _folder(value: str) -> Path:
    folder = Path(value).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"no folder {value!r}", key="--config-dir")
    return folder


def _with_recipe(overrides: list[str]) -> list[str]:
    """A first word without `=` is the recipe: its name, its file, or several divided by commas."""
    if not overrides or "=" in overrides[0].split("'")[0] or overrides[0].startswith(("~", "+")):
        return overrides
    first, *rest = overrides
    if second := next((text for text in rest if text.startswith("recipe=")), None):
        raise UserError(f"two recipes are given: {first!r} and {second!r}; sweep over both with -m recipe=A,B")
    return [recipe_override(first) if Path(first).expanduser().is_file() else f"recipe={first}", *rest]


def _checked(overrides: list[str]) -> list[str]:
    for position, text in enumerate(overrides):
        following = overrides[position + 1] if position + 1 < len(overrides) else "="
        if text.startswith("=") or (text.endswith("=") and "=" not in following):
            around = " ".join(overrides[max(position - 1, 0) : position + 2])
            raise UserError(f"{around!r}: write KEY=VALUE without spaces around '='")
        if text.split("=")[0] in _FOLDERS:
            raise UserError(f"{text!r}: the folder of a run is set with run_dir=FOLDER")
    return overrides
