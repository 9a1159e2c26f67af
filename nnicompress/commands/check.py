"""`nnicompress check`: validate a recipe completely, without training."""

from __future__ import annotations

from nnicompress.commands.arguments import parse_recipe

HELP = """
usage: nnicompress check recipe=NAME [KEY=VALUE ...] [OPTIONS]

Validates everything that can be known without training: every key and type, every `_target_` and its arguments,
every selector against the model (and prints what each target selects), what the compressor needs and whether the
recipe gives it. All errors are shown at once.

  nnicompress check taylorfo_resnet
  nnicompress check recipe=mine.yaml compressor.targets.convs.sparse_ratio=0.6

options:
  --config-dir DIR   files in DIR win over the shipped ones
  --trust PACKAGE    allow `_target_`s of PACKAGE (repeatable; or set NNICOMPRESS_TRUST)
  --traceback        show where an error came from
"""


def main(arguments: list[str]) -> int:
    """Print what the recipe will do; UserError (all errors together) where something is wrong."""
    parsed = parse_recipe(arguments, command="check")

    from nnicompress.checks.recipe import check_recipe
    from nnicompress.commands.display import print_check
    from nnicompress.trust import allow

    with allow(parsed.trust):
        _, report = check_recipe(parsed.overrides, config_dir=parsed.config_dir)
    print_check(report)
    return 0
