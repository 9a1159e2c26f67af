"""The command line: a dictionary of sub-commands; nothing heavy is imported before the chosen one needs it."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from nnicompress import __version__
from nnicompress.errors import NNICompressError, UserError, did_you_mean

# Name -> summary; command NAME lives in nnicompress/commands/NAME.py (with _ for -) as `HELP` and
# `main(arguments) -> exit code`.
COMMANDS = {
    "run": "take a recipe through all of its stages",
    "check": "validate a recipe completely, without training",
    "ls": "list recipes and the options of each config group",
    "sensitivity": "find the layers that a recipe's model can least do without",
    "show": "print a finished run's report again",
    "compare": "show runs side by side, best first, with what differs in their settings",
    "export": "write a finished run's model in further formats",
    "reproduce": "run a recipe and compare with its expected numbers",
    "import-nni": "turn a pruning configuration of NNI into a recipe",
    "doctor": "take your own evaluator, importance, model or compressor through its contract",
    "completion": "print the script that completes commands, recipes, groups and keys in bash",
}

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong input, 3 expected numbers missed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with_traceback = os.environ.get("NNICOMPRESS_TRACEBACK") == "1" or "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    try:
        return _dispatch(arguments)
    except NNICompressError as error:
        if with_traceback:
            traceback.print_exc()
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `nnicompress ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:  # a bug of ours or of the user's code: the traceback is what helps
        traceback.print_exc()
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"nnicompress {__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        raise UserError(_unknown(command))
    module = importlib.import_module(f"nnicompress.commands.{command.replace('-', '_')}")
    if "-h" in rest or "--help" in rest:
        print(module.HELP.strip())
        return 0
    code: int = module.main(rest)
    return code


def overview() -> str:
    """The text of `nnicompress --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return f"""usage: nnicompress COMMAND [ARGUMENTS]

commands:
{commands}

  nnicompress run recipe=taylorfo_resnet
  nnicompress COMMAND --help

options of every command:
  --traceback  show where an error came from (or set NNICOMPRESS_TRACEBACK=1)
  --version    print the version

exit codes: 0 done, 1 the job failed, 2 the input is wrong, 3 a reproduced recipe missed its expected numbers"""


def _unknown(word: str) -> str:
    from nnicompress.paths import find_recipes

    if "=" in word or word in find_recipes() or word.endswith((".yaml", ".yml")):
        return f"{word!r} is not a command; did you mean 'nnicompress run {word}'?"
    if word.startswith("-"):
        return f"unknown option {word!r}; options come after the command: nnicompress COMMAND {word}"
    return f"no command named {word!r}{did_you_mean(word, COMMANDS)} (known: {', '.join(COMMANDS)})"
