"""`nnicompress doctor`: take an evaluator, importance, model or compressor of your own through its contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnicompress.errors import UserError, did_you_mean

HELP = """
usage: nnicompress doctor PATH [KEY=VALUE ...] [OPTIONS]

Builds what PATH names and tries every line of its contract: what is ok, what is missing, what is wrong, and what to do
about it. PATH is the dotted name of a class or function; KEY=VALUE are its arguments.

  nnicompress doctor my_model.Net num_classes=10 --input 1x3x32x32
  nnicompress doctor my_training.make_evaluator --model my_model.Net
  nnicompress doctor my_scores.fisher needs_gradient=true
  nnicompress doctor my_pruner.MyPruner

A function `(weight, gradient) -> scores` is an importance. An evaluator is a class, or a function that returns one (or
one with its model); parameters named `model` and `listener` are filled in. A compressor takes (settings, evaluator).

options:
  --input SHAPE[:TYPE]  an input of the model's forward, 1x3x32x32 or 2x16:int64; once for each argument
  --model PATH          for an evaluator: the model to train (default: a small network for the shipped digits)
  --kind KIND           evaluator, importance, model or compressor, where the object doesn't show it
  --trust PACKAGE       allow code of PACKAGE; code in the current directory is allowed (repeatable)
  --traceback           show where an error came from

exit codes: 0 all ok, 1 something is missing or wrong, 2 the input is wrong
"""

_OPTIONS = ("--input", "--model", "--kind", "--trust")


@dataclass
class Words:
    """The command line, taken apart."""

    path: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    options: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in _OPTIONS})

    def one(self, option: str) -> str | None:
        """The value of an option that may be given once."""
        values = self.options[option]
        if len(values) > 1:
            raise UserError(f"{option} is given twice: {' and '.join(values)}")
        return values[0] if values else None


def main(arguments: list[str]) -> int:
    """Print the examination; 0 where all is ok, 1 where something is missing or wrong."""
    words = parse(arguments)
    kind, model = words.one("--kind"), words.one("--model")

    from rich.console import Console

    from nnicompress.doctor.examine import examine
    from nnicompress.doctor.table import print_examination
    from nnicompress.trust import allow

    # A path on the user's own command line may also name what this package ships.
    with allow(["nnicompress", *words.options["--trust"]]), Console(stderr=True).status("doctor") as status:
        found = examine(
            words.path,
            words.arguments,
            kind=kind,
            inputs=words.options["--input"],
            model=model,
            tell=lambda name: status.update(f"checking: {name}"),
        )
    print_examination(found, Console())
    return 0 if found.healthy else 1


def parse(argv: Sequence[str]) -> Words:
    """Tell path, arguments and options apart; raises UserError."""
    words, rest = Words(), iter(argv)
    for word in rest:
        if word.startswith("-"):
            option, value = _option(word, rest)
            words.options[option].append(value)
        elif "=" in word:
            name, _, text = word.partition("=")
            if not name.isidentifier():
                raise UserError(f"{word!r}: {name!r} is not the name of an argument; write KEY=VALUE")
            if name in words.arguments:
                raise UserError(f"{name!r} is given twice")
            words.arguments[name] = _value(name, text)
        elif words.path:
            raise UserError(f"two paths: {words.path!r} and {word!r}; doctor examines one object at a time")
        else:
            words.path = word
    if not words.path:
        raise UserError("doctor needs the dotted name of a class or function, as in: nnicompress doctor my_model.Net")
    return words


def _option(word: str, rest: Iterator[str]) -> tuple[str, str]:
    option, equals, value = word.partition("=")
    if option not in _OPTIONS:
        raise UserError(f"nnicompress doctor has no option {option!r}{did_you_mean(option, _OPTIONS)}")
    if not equals:
        value = next(rest, "")
    if not value or value.startswith("--"):
        raise UserError(f"{option} needs a value")
    return option, value


def _value(name: str, text: str) -> Any:
    """Numbers, booleans, lists and texts as YAML writes them."""
    import yaml

    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise UserError(f"{name}={text}: the value is not YAML; put it in quotes") from error
