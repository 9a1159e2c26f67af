"""`nnicompress sensitivity`: which layers a recipe's model can least do without."""

from __future__ import annotations

from nnicompress.commands.arguments import parse_recipe
from nnicompress.distributed import joined

HELP = """
usage: nnicompress sensitivity recipe=NAME [KEY=VALUE ...] [OPTIONS]

Takes the first stage of a recipe (train, or start), then prunes or quantizes one layer after the other, measures the
model on the validation data each time, and sorts the layers by what they cost. Writes a table, a page that plots it,
and sensitivity.yaml, from which a recipe takes the layers to leave alone:
  exclude_op_names: ${nnicompress.sensitive:FOLDER/sensitivity.yaml}

  nnicompress sensitivity recipe=taylorfo_resnet
  nnicompress sensitivity taylorfo_resnet stages.sensitivity.ratios=[0.3,0.6] stages.sensitivity.mode=all_but_one
  nnicompress sensitivity taylorfo_resnet stages.sensitivity.kind=quantized stages.sensitivity.levels=[int8,int4]

settings, below stages.sensitivity (docs/sensitivity.md):
  kind         pruned or quantized
  mode         one: each layer alone; all_but_one: each layer spared, all others compressed
  ratios       pruned: shares of a layer's channels
  importance   pruned: which channels go first: l1, taylor ...
  levels       quantized: int8, int4 ...
  max_drop     layers that cost more than this, on average, are to be left alone

options:
  --smoke            two batches of everything and a single ratio, in a folder of its own
  --fresh            start over: nothing of an earlier analysis in the folder is reused
  --explain          say why each stage ran and was not reused
  --config-dir DIR   files in DIR win over the shipped ones
  --trust PACKAGE    allow `_target_`s of PACKAGE (repeatable; or set NNICOMPRESS_TRUST)
  --traceback        show where an error came from

An analysis that was stopped or killed goes on after its last measurement: run the same command again.
"""


def main(arguments: list[str]) -> int:
    """Check, run and print; UserError before anything is written, JobError where the analysis failed."""
    parsed = parse_recipe(arguments, command="sensitivity", smoke=True)
    with joined():
        from nnicompress import distributed
        from nnicompress.checks.recipe import check
        from nnicompress.commands.display import run_with_progress
        from nnicompress.config.compose import compose_with_origin, only_stages
        from nnicompress.trust import allow

        with allow(parsed.trust):
            # The stage first, so that settings below it can be given for a recipe that doesn't list it.
            given = (f"++{word}" if word.startswith("stages.sensitivity=") else word for word in parsed.overrides)
            words = ("++stages.sensitivity={}", *given)
            composed = compose_with_origin(words, config_dir=parsed.config_dir)
            only_stages(composed, ("train", "start"), "sensitivity")
            check(composed.config, composed.origin)
            run_with_progress(composed.config, smoke=parsed.smoke, fresh=parsed.fresh, explain=parsed.explain)
        if distributed.is_main():
            _show(str(composed.config.run_dir))
    return 0


def _show(folder: str) -> None:
    from pathlib import Path

    from nnicompress.report.sensitivity_table import print_sensitivity
    from nnicompress.sensitivity.result import FILE, PAGE, read

    print_sensitivity(read(Path(folder)))
    print(f"\n{Path(folder) / PAGE}: this table, plotted")
    print(f"{Path(folder) / FILE}: what a recipe takes exclude_op_names from")
