"""`nnicompress run`: check a recipe, then hand over to the public `hydra.main`, which runs it or sweeps over it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from nnicompress.commands.arguments import Arguments, parse_recipe
from nnicompress.errors import InputErrors, JobError, NNICompressError, UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = """
usage: nnicompress run recipe=NAME [KEY=VALUE ...] [OPTIONS]

Checks a recipe, then takes it through all of its stages. NAME is a recipe (see `nnicompress ls`) or a path to a
YAML file. Hydra's override grammar holds: KEY=VALUE sets, GROUP=OPTION chooses, +KEY=VALUE adds, ~KEY deletes.

  nnicompress run recipe=taylorfo_resnet
  nnicompress run recipe=taylorfo_resnet compressor.targets.convs.sparse_ratio=0.6 seed=1
  nnicompress run recipe=mine.yaml --smoke
  nnicompress run -m recipe=taylorfo_resnet,random_resnet seed=0,1,2

options:
  --smoke               take every stage through two batches, in a folder of its own
  --config-dir DIR      files in DIR win over the shipped ones: DIR/model/mine.yaml, DIR/recipes/mine.yaml
  --trust PACKAGE       allow `_target_`s of PACKAGE (repeatable; or set NNICOMPRESS_TRUST)
  -m, --multirun        sweep: every combination of KEY=A,B and recipe=A,B, each in a folder of its own
  --cfg job [--resolve] print the composed config and stop; --package KEY prints a part of it
  --info [WHAT]         print what Hydra knows: all, config, defaults, defaults-tree, plugins, searchpath
  --hydra-help          Hydra's own help
  --traceback           show where an error came from
"""

# The folder of a run is its own and stable; Hydra must neither put one of its own beside it nor log.
_HYDRA_SETTINGS = (
    "hydra.run.dir=${nnicompress.run_dir:}",
    "hydra.sweep.dir=runs",
    "hydra.sweep.subdir=${nnicompress.run_dir:}",
    "hydra.job.chdir=false",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)


def main(arguments: list[str]) -> int:
    """Check, then run; UserError before anything is written, JobError where the run, or a point of a sweep, failed."""
    parsed = parse_recipe(arguments, command="run", hydra=True, smoke=True)

    from nnicompress.config.compose import compose_with_origin

    added: frozenset[str] = frozenset()
    if not parsed.inspects:
        added = check_all(parsed)
    elif {"--cfg", "--info"} & set(parsed.hydra_options):
        # Composed here first: its errors say more than those of Hydra's printers.
        added = _added(compose_with_origin(parsed.overrides, config_dir=parsed.config_dir).overrides)
    overrides = tuple(f"++{text}" if text.partition("=")[0] in added else text for text in parsed.overrides)
    return _with_hydra(replace(parsed, overrides=overrides), arguments)


def _added(overrides: Sequence[str]) -> frozenset[str]:
    """The keys that Hydra must be told to add."""
    return frozenset(text.partition("=")[0][2:] for text in overrides if text.startswith("++"))


def check_all(parsed: Arguments) -> frozenset[str]:
    """Check the recipe, or every point of the sweep, and raise all errors at once.

    Returns the keys of overrides that no file writes: Hydra must be told to add them.
    """
    from nnicompress.checks.recipe import check_recipe
    from nnicompress.config.compose import sweep_points
    from nnicompress.trust import allow

    if parsed.multirun and _has_own_sweeper(parsed):
        return frozenset()  # that sweeper chooses its points as it goes: each is checked when it starts
    points: Sequence[Sequence[str]] = [parsed.overrides]
    if parsed.multirun:
        points = sweep_points(parsed.overrides, config_dir=parsed.config_dir)
    errors: dict[str, UserError] = {}
    added: frozenset[str] = frozenset()
    with allow(parsed.trust):
        for point in points:
            try:
                composed, _ = check_recipe(point, config_dir=parsed.config_dir)
                added |= _added(composed.overrides)
            except InputErrors as several:
                errors.update({str(error): error for error in several.errors})
            except UserError as error:
                errors[str(error)] = error
    if errors:
        raise InputErrors(tuple(errors.values()))
    return added


def _with_hydra(parsed: Arguments, arguments: Sequence[str]) -> int:
    import hydra

    from nnicompress.config.compose import PRIMARY, VERSION_BASE, full_errors, run_dir_resolver
    from nnicompress.config.messages import explained
    from nnicompress.config.search_path import searching
    from nnicompress.paths import shipped

    task = _Task(parsed, [sys.argv[0], "run", *arguments])
    command_line = [sys.argv[0], *parsed.hydra_options, *_HYDRA_SETTINGS, *parsed.overrides]
    entry = hydra.main(config_path=str(shipped("conf")), config_name=PRIMARY, version_base=VERSION_BASE)(task)
    with searching(parsed.config_dir), full_errors(), run_dir_resolver(smoke=parsed.smoke):
        try:
            with argv(command_line), explained(parsed.overrides):
                entry()
        except SystemExit as stop:
            if not parsed.inspects:
                raise
            return 2 if stop.code else 0  # Hydra has printed what it was asked for, or why it can't
        except Exception as error:
            if all(error is not failure for _, failure in task.failures):
                raise
    task.conclude()
    return 0


def print_completions(query: Arguments) -> None:
    """Print Hydra's completions of the environment variable COMP_LINE, which holds no sub-command."""
    _with_hydra(replace(query, hydra_options=("--shell-completion",)), [])


class _Task:
    """What Hydra calls with each composed config: once, or once a point of a sweep."""

    def __init__(self, parsed: Arguments, command_line: list[str]) -> None:
        self.parsed, self.command_line = parsed, command_line
        self.failures: list[tuple[str, Exception]] = []
        self.count = 0

    def __call__(self, config: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        settings = HydraConfig.get()
        point = " ".join(settings.overrides.task)
        self.count += 1
        try:
            # Lightning starts its processes of a multi-device training with sys.argv: it must be the user's own.
            with argv(self.command_line):
                if self.parsed.multirun:
                    print(f"\n[{settings.job.num + 1}] {point}", flush=True)
                self._run(list(settings.overrides.task))
        except Exception as error:
            self.failures.append((point, error))
            if self.parsed.multirun:
                self._tell(error)
                raise  # for launchers that run points in other processes; Hydra's own goes on with the next point

    def _run(self, overrides: Sequence[str]) -> None:
        from nnicompress.commands.display import run_and_print
        from nnicompress.config.compose import compose
        from nnicompress.trust import allow

        if self.parsed.multirun and _has_own_sweeper(self.parsed):
            check_all(replace(self.parsed, overrides=tuple(overrides), hydra_options=()))
        # Composed once more, so that a run from here and one from Python go one way.
        config = compose(overrides, config_dir=self.parsed.config_dir)
        with allow(self.parsed.trust):
            run_and_print(config, smoke=self.parsed.smoke)

    def _tell(self, error: Exception) -> None:
        if isinstance(error, NNICompressError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            traceback.print_exception(error)

    def conclude(self) -> None:
        """Raise what failed: the error itself of a single run, a summary of a sweep."""
        if self.failures and not self.parsed.multirun:
            raise self.failures[0][1]
        if self.failures:
            lines = [f"  {point}: {str(error).splitlines()[0]}" for point, error in self.failures]
            raise JobError("\n".join([f"{len(self.failures)} of {self.count} runs of the sweep failed:", *lines]))


@contextmanager
def argv(words: list[str]) -> Iterator[None]:
    """`sys.argv` is `words` within the block."""
    before = sys.argv
    sys.argv = words
    try:
        yield
    finally:
        sys.argv = before


def _has_own_sweeper(parsed: Arguments) -> bool:
    return any(text.startswith("hydra/sweeper=") for text in parsed.overrides)
