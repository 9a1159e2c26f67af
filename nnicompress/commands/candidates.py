"""Candidates for the word that a shell wants completed: commands, options, recipes, groups, options and keys."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

from nnicompress.errors import UserError
from nnicompress.paths import find_groups, find_recipes

_RECIPE_OPTIONS = ("--config-dir", "--trust", "--traceback", "--help")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "run": (*_RECIPE_OPTIONS, "--smoke", "--fresh", "--explain", "--multirun", "--cfg", "--resolve", "--info"),
    "check": _RECIPE_OPTIONS,
    "reproduce": _RECIPE_OPTIONS,
    "sensitivity": (*_RECIPE_OPTIONS, "--smoke", "--fresh", "--explain"),
    "ls": ("--config-dir", "--help"),
    "import-nni": ("--output", "--traceback", "--help"),
    "show": ("--help",),
    "compare": ("--html", "--traceback", "--help"),
    "doctor": ("--input", "--model", "--kind", "--trust", "--traceback", "--help"),
    "export": ("--format", "--output", "--trust", "--help"),
    "completion": ("--help",),
}
_AFTER_OPTION = {
    "--kind": ("evaluator", "importance", "model", "compressor"),
    "--format": ("pt2", "onnx"),
    "--cfg": ("job", "hydra", "all"),
    "-c": ("job", "hydra", "all"),
}


def candidates(line: str) -> list[str]:
    """Completions of the last word of `line` (empty after a space), sorted; each is the whole word.

    Only a recipe's keys need Hydra (0.4 s); all else is answered from the file system.
    """
    words = line.split()
    word = "" if not words or line[-1].isspace() else words.pop()
    if not words:
        return []
    if len(words) == 1:
        return _starting(word, sorted(_OPTIONS))
    command, previous = words[1], words[-1]
    if command not in _OPTIONS:
        return []
    if previous in _AFTER_OPTION:
        return _starting(word, _AFTER_OPTION[previous])
    if word.startswith("-"):
        return _starting(word, sorted(_OPTIONS[command]))
    if command in ("ls", "show", "compare", "export", "completion"):
        return _starting(word, _positional(command))
    return [] if command == "doctor" else _override(word, words[2:])  # its words are names of the user's own code


def _positional(command: str) -> list[str]:
    if command == "ls":
        return ["recipe", *find_groups(), "compressors"]
    if command in ("show", "compare", "export"):
        return sorted(report.parent.as_posix() for report in Path("runs").glob("*/report.json"))
    return ["bash"]


def _override(word: str, before: Sequence[str]) -> list[str]:
    config_dir = _config_dir(before)
    recipes = list(find_recipes(config_dir))
    if word.startswith("recipe="):
        chosen, comma, _ = word.removeprefix("recipe=").rpartition(",")
        return _starting(word, [f"recipe={chosen}{comma}{name}" for name in recipes])
    recipe = next((text for text in before if text.startswith("recipe=")), None)
    named = next((text for text in before if text in recipes or text.endswith((".yaml", ".yml"))), None)
    if recipe is None and named is None:
        groups = [f"{group}=" for group in find_groups(config_dir)]
        return _starting(word, sorted(["recipe=", *recipes, *groups]) if word else ["recipe=", *recipes])
    overrides = [text for text in before if "=" in text or text.startswith(("~", "+"))]
    return _from_hydra(word, [recipe or f"recipe={named}", *(text for text in overrides if text != recipe)], config_dir)


def _from_hydra(word: str, overrides: Sequence[str], config_dir: Path | None) -> list[str]:
    """Hydra's own completion, which knows the keys of the composed recipe."""
    from nnicompress.commands.arguments import Arguments
    from nnicompress.commands.run import print_completions

    before = os.environ.get("COMP_LINE")
    os.environ["COMP_LINE"] = " ".join(["nnicompress", *overrides, word])
    printed = io.StringIO()
    try:
        # Whatever is wrong with the words before this one, completion is not the place to say so.
        with contextlib.redirect_stdout(printed), contextlib.suppress(UserError):
            print_completions(Arguments(overrides=("query=bash",), config_dir=config_dir))
    finally:
        if before is None:
            del os.environ["COMP_LINE"]
        else:
            os.environ["COMP_LINE"] = before
    return _starting(word, [name for name in printed.getvalue().split() if not name.startswith("hydra")])


def _config_dir(words: Sequence[str]) -> Path | None:
    for position, text in enumerate(words):
        option, _, value = text.partition("=")
        if option in ("--config-dir", "-cd"):
            folder = Path(value or " ".join(words[position + 1 : position + 2])).expanduser().absolute()
            return folder if folder.is_dir() else None
    return None


def _starting(word: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]
