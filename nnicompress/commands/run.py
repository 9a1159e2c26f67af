"""`nnicompress run`: check a recipe, then hand over to the public `hydra.main`, which runs it or sweeps over it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from nnicompress.commands.arguments import Arguments, parse_recipe
from nnicompress.commands.checking import OWN_SWEEPER, Checked, added, check_all, sweeper
from nnicompress.distributed import joined, launched
from nnicompress.errors import UserError

HELP = """
usage: nnicompress run recipe=NAME [KEY=VALUE ...] [OPTIONS]

Checks a recipe, then takes it through all of its stages. NAME is a recipe (see `nnicompress ls`) or a path to a
YAML file. Hydra's override grammar holds: KEY=VALUE sets, GROUP=OPTION chooses, +KEY=VALUE adds, ~KEY deletes.

  nnicompress run recipe=taylorfo_resnet
  nnicompress run recipe=taylorfo_resnet compressor.targets.convs.sparse_ratio=0.6 seed=1
  nnicompress run recipe=mine.yaml --smoke
  nnicompress run -m recipe=taylorfo_resnet,random_resnet seed=0,1,2
  nnicompress run -m taylorfo_resnet seed=0,1,2 hydra/launcher=joblib hydra.launcher.n_jobs=3 runtime.threads=1
  nnicompress run -m taylorfo_resnet hydra/sweeper=nnicompress_optuna 'optimizer.lr=tag(log, interval(0.001, 0.3))'

options:
  --smoke               take every stage through two batches, in a folder of its own
  --explain             say why each stage ran and was not reused
  --fresh               start over: nothing of an earlier run in the folder is reused
  --config-dir DIR      files in DIR win over the shipped ones: DIR/model/mine.yaml, DIR/recipes/mine.yaml
  --trust PACKAGE       allow `_target_`s of PACKAGE (repeatable; or set NNICOMPRESS_TRUST)
  -m, --multirun        sweep: every combination of KEY=A,B and recipe=A,B, each in a folder of its own; ends with a
                        table of the runs, best first, and a page that plots them
  --cfg job [--resolve] print the composed config and stop; --package KEY prints a part of it
  --info [WHAT]         print what Hydra knows: all, config, defaults, defaults-tree, plugins, searchpath
  --hydra-help          Hydra's own help
  --traceback           show where an error came from

Several processes train together, with the same result (docs/distributed.md):
  torchrun --nproc-per-node 2 -m nnicompress run recipe=taylorfo_resnet
"""

# The folder of a run is its own and stable; Hydra must neither put one of its own beside it nor log.
_HYDRA_SETTINGS = (
    "hydra.run.dir=${nnicompress.run_dir:}",
    "hydra.sweep.subdir=${nnicompress.run_dir:}",
    "hydra.job.chdir=false",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)


def main(arguments: list[str]) -> int:
    """Check, then run; UserError before anything is written, JobError where the run, or a point of a sweep, failed."""
    parsed = parse_recipe(arguments, command="run", hydra=True, smoke=True)
    if parsed.multirun and launched():
        raise UserError("a sweep (-m) runs one point after the other, and not in several processes; leave torchrun out")
    with joined():
        return _run(parsed, arguments)


def _run(parsed: Arguments, arguments: list[str]) -> int:
    from nnicompress.config.compose import compose_with_origin

    checked = Checked()
    if not parsed.inspects:
        checked = check_all(parsed)
    elif {"--cfg", "--info"} & set(parsed.hydra_options):
        # Composed here first: its errors say more than those of Hydra's printers.
        checked.added = added(compose_with_origin(parsed.overrides, config_dir=parsed.config_dir).overrides)
    unwritten = checked.added | _keys_of_recipes(parsed)
    overrides = tuple(f"++{text}" if text.partition("=")[0] in unwritten else text for text in parsed.overrides)
    return _with_hydra(replace(parsed, overrides=overrides), arguments, mode=next(iter(checked.modes), "max"))


def _keys_of_recipes(parsed: Arguments) -> frozenset[str]:
    """In a sweep over recipes: keys that only the recipes may write.

    Hydra composes such a sweep once without any recipe, to find its launcher, and knows nothing of their keys.
    """
    recipes = [text for text in parsed.overrides if text.startswith("recipe=") and ("," in text or "(" in text)]
    if not (parsed.multirun and recipes):
        return frozenset()
    keys = (text.partition("=")[0] for text in parsed.overrides)
    return frozenset(key for key in keys if "." in key and not key.startswith(("hydra.", "+", "~")))


def _with_hydra(parsed: Arguments, arguments: Sequence[str], *, mode: str = "max") -> int:
    import hydra

    from nnicompress.commands.task import Task, argv
    from nnicompress.config.compose import PRIMARY, VERSION_BASE, full_errors, run_dir_resolver
    from nnicompress.config.messages import explained
    from nnicompress.config.search_path import searching
    from nnicompress.paths import shipped

    task = Task(parsed, [sys.argv[0], "run", *arguments], mode=mode)
    settings = (*_HYDRA_SETTINGS, f"hydra.sweep.dir={task.ledger.folder}")
    command_line = [sys.argv[0], *parsed.hydra_options, *settings, *parsed.overrides]
    entry = hydra.main(config_path=str(shipped("conf")), config_name=PRIMARY, version_base=VERSION_BASE)(task)
    if parsed.multirun and not parsed.inspects:
        task.ledger.start_over()
        if sweeper(parsed) == OWN_SWEEPER:
            from nnicompress.sweep.optuna_sweeper import register

            register()
    with searching(parsed.config_dir), full_errors(), run_dir_resolver(smoke=parsed.smoke), _same_logging():
        try:
            with argv(command_line), explained(parsed.overrides):
                entry()
        except SystemExit as stop:
            if not parsed.inspects:
                raise
            return 2 if stop.code else 0  # Hydra has printed what it was asked for, or why it can't
        except (Exception, KeyboardInterrupt):  # not of a run itself but of what carries it: a launcher, or a sweeper
            task.show()
            raise
    task.conclude()
    return 0


@contextmanager
def _same_logging() -> Iterator[None]:
    """Hydra's printers add a handler to the root logger, which would outlive them in whatever process called us."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def print_completions(query: Arguments) -> None:
    """Print Hydra's completions of the environment variable COMP_LINE, which holds no sub-command."""
    _with_hydra(replace(query, hydra_options=("--shell-completion",)), [])
