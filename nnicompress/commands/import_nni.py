"""`nnicompress import-nni`: a pruning configuration of NNI as a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnicompress.errors import UserError, did_you_mean
from nnicompress.paths import find_groups

HELP = """
usage: nnicompress import-nni FILE [GROUP=OPTION ...] [--output RECIPE]

Writes a recipe for the config_list in FILE: YAML, JSON, or a Python file in which the list is written out (nothing of
it is run). Keys of NNI 3 and of the versions before it are understood; one without a counterpart is an error. A config
list says which layers and how much; the rest are options: compressor=l1 for NNI's L1NormPruner, fpgm, taylorfo, level
for its LevelPruner ...

  nnicompress import-nni config.json compressor=taylorfo model=resnet20 data=digits --output mine.yaml
  nnicompress check recipe=mine.yaml

options:
  --output RECIPE  where to write it (default: the terminal); never over a file that is there
"""

OPTIONS = {"model": "resnet20", "data": "digits", "optimizer": "sgd", "scheduler": "onecycle", "evaluator": "torch",
           "compressor": "l1"}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Write the recipe; UserError for what can't be taken over."""
    file, options, output = _parse(arguments)

    import yaml

    from nnicompress.config.nni import import_config_list, read_config_list

    imported = import_config_list(read_config_list(file))
    preset = yaml.safe_load(find_groups()["compressor"][options["compressor"]].read_text(encoding="utf-8"))
    channels = ("output_channel", "input_channel")
    shrinks = any(target.get("granularity", preset["granularity"]) in channels for target in imported.targets.values())
    compressor: dict[str, Any] = {}
    if imported.competes:
        compressor["allocation"] = {"name": "global"}
    compressor["targets"] = {**dict.fromkeys(preset["targets"]), **imported.targets}
    text = _recipe(file, output, options, compressor, imported.notes, shrinks=shrinks)
    if output is None:
        print(text, end="")
    else:
        try:
            with output.open("x", encoding="utf-8") as stream:
                stream.write(text)
        except OSError as error:
            raise UserError(f"{output} can't be written: {error.strerror}") from error
    return 0


def _recipe(
    file: Path,
    output: Path | None,
    options: Mapping[str, str],
    compressor: Mapping[str, Any],
    notes: tuple[str, ...],
    *,
    shrinks: bool,
) -> str:
    import yaml

    defaults = "".join(f"  - override /{group}: {option}\n" for group, option in options.items())
    body = yaml.safe_dump({"compressor": dict(compressor)}, sort_keys=False, default_flow_style=None, width=110)
    return (
        f"# The pruning configuration of {file.name}, imported from NNI\n"
        f"# nnicompress run recipe={'RECIPE.yaml' if output is None else output}\n"
        f"{''.join(f'# {note}{chr(10)}' for note in notes)}"
        f"defaults:\n{defaults}\n{body}\n"
        "stages:\n  train: {max_epochs: 12}\n  prune: {}\n"
        f"{'  shrink: {}' + chr(10) if shrinks else ''}"
        "  finetune: {max_epochs: 4}\n  export: {}\n  evaluate: {}\n"
    )


def _parse(arguments: list[str]) -> tuple[Path, dict[str, str], Path | None]:
    options, files, output, words = dict(OPTIONS), [], None, iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--output":
            given = value if equals else next(words, "")
            if not given:
                raise UserError("--output needs the name of a file")
            output = Path(given)
        elif word.startswith("-"):
            raise UserError(f"unknown option {word!r}{did_you_mean(name, ['--output'])}")
        elif equals:
            known = find_groups()
            if name not in OPTIONS:
                raise UserError(f"no group named {name!r}{did_you_mean(name, OPTIONS)} (known: {', '.join(OPTIONS)})")
            if value not in known[name]:
                raise UserError(f"no {name} named {value!r}{did_you_mean(value, known[name])}")
            options[name] = value
        else:
            files.append(word)
    if len(files) != 1:
        raise UserError("import-nni takes one file: nnicompress import-nni FILE [GROUP=OPTION ...]")
    return Path(files[0]), options, output
