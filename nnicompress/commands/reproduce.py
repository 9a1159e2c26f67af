"""`nnicompress reproduce`: run a recipe, or a run, again and hold its numbers against what they should be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnicompress.commands.arguments import Arguments, parse_recipe
from nnicompress.errors import ConfigError, UserError

if TYPE_CHECKING:
    from nnicompress.report.record import Report

HELP = """
usage: nnicompress reproduce RECIPE [KEY=VALUE ...] [OPTIONS]
       nnicompress reproduce RUN [run_dir=FOLDER] [OPTIONS]

Runs a recipe from its beginning and compares what was measured with the recipe's `expected:` block; or runs what a
finished run's manifest says, in a folder of its own (RUN-reproduced), and compares with that run's numbers: accuracy
within 0.01, counted ratios within 0.001, the latency ratio within 25 %. Exit code 3 and a table of what missed.

  nnicompress reproduce taylorfo_resnet
  nnicompress reproduce runs/taylorfo_resnet-1f0c2a9b

options:
  --config-dir DIR   files in DIR win over the shipped ones
  --trust PACKAGE    allow `_target_`s of PACKAGE (repeatable; or set NNICOMPRESS_TRUST)
  --traceback        show where an error came from
"""


def main(arguments: list[str]) -> int:
    """Run and compare; ExpectationError where a number is missed, UserError where there is nothing to compare with."""
    run = next((Path(word) for word in arguments if not word.startswith("-") and "=" not in word), None)
    if run is not None and run.is_dir():
        return _reproduce_run(run, [word for word in arguments if word != str(run) and Path(word) != run])
    return _reproduce_recipe(parse_recipe(arguments, command="reproduce"))


def _reproduce_recipe(parsed: Arguments) -> int:
    from nnicompress.checks.recipe import check_recipe
    from nnicompress.commands.display import run_and_print
    from nnicompress.report.expected import require_expected
    from nnicompress.trust import allow

    with allow(parsed.trust):
        composed, _ = check_recipe(parsed.overrides, config_dir=parsed.config_dir)
        if not composed.config.get("expected"):
            message = "the recipe states no numbers to reproduce, as in expected: {accuracy: {min: 0.9}}"
            raise ConfigError(message, key="expected", source=composed.origin.source_of("expected"))
        report = run_and_print(composed.config, smoke=False, fresh=True)
    require_expected(report)
    return 0


def _reproduce_run(run: Path, words: list[str]) -> int:
    from omegaconf import OmegaConf

    from nnicompress.commands.arguments import parse
    from nnicompress.commands.display import print_report, run_with_progress
    from nnicompress.pipeline.manifest import DIFF_FILE, read_manifest
    from nnicompress.pipeline.run_dir import finished_report
    from nnicompress.report.expected import require_expected
    from nnicompress.report.reproduction import compare_with, origin_differences
    from nnicompress.trust import allow

    parsed = parse(words, command="reproduce")
    target = run.with_name(f"{run.absolute().name}-reproduced")
    for word in parsed.overrides:
        if not word.startswith("run_dir="):
            raise UserError(f"{word!r}: a run is reproduced as it was; only run_dir=FOLDER can be given with it")
        target = Path(word.removeprefix("run_dir="))
    if target.absolute() == run.absolute():
        raise UserError(f"run_dir={target} is the run that is to be reproduced; give another folder")
    manifest, earlier = read_manifest(run), finished_report(run)
    config = OmegaConf.create({**manifest["config"], "run_dir": str(target)})
    with allow(parsed.trust):
        report: Report = run_with_progress(config, smoke=False, fresh=True)
    rows = (*report.expected, *compare_with(earlier, report))
    report = report.model_copy(update={"expected": rows})
    print_report(report)
    differences = origin_differences(manifest, read_manifest(target))
    for line in differences:
        print(f"differs: {line}", file=sys.stderr)
    if any(line.startswith("git commit") for line in differences) and (run / DIFF_FILE).exists():
        print(
            f"         the earlier run had changes that no commit holds: git apply {run / DIFF_FILE}", file=sys.stderr
        )
    require_expected(report)
    return 0
