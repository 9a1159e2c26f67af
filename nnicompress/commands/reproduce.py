"""`nnicompress reproduce`: run a recipe and hold its numbers against its `expected:` block."""

from __future__ import annotations

from nnicompress.commands.arguments import parse_recipe
from nnicompress.errors import ConfigError

HELP = """
usage: nnicompress reproduce RECIPE [KEY=VALUE ...] [OPTIONS]

Runs a recipe and compares what was measured with the recipe's `expected:` block. Exit code 3 and a table of what
missed where a bound doesn't hold.

  nnicompress reproduce taylorfo_resnet

options:
  --config-dir DIR   files in DIR win over the shipped ones
  --trust PACKAGE    allow `_target_`s of PACKAGE (repeatable; or set NNICOMPRESS_TRUST)
  --traceback        show where an error came from
"""


def main(arguments: list[str]) -> int:
    """Run and compare; ExpectationError where a bound is missed, UserError where the recipe states none."""
    parsed = parse_recipe(arguments, command="reproduce")

    from nnicompress.checks.recipe import check_recipe
    from nnicompress.commands.display import run_and_print
    from nnicompress.report.expected import require_expected
    from nnicompress.trust import allow

    with allow(parsed.trust):
        composed, _ = check_recipe(parsed.overrides, config_dir=parsed.config_dir)
        if not composed.config.get("expected"):
            message = "the recipe states no numbers to reproduce, as in expected: {accuracy: {min: 0.9}}"
            raise ConfigError(message, key="expected", source=composed.origin.source_of("expected"))
        report = run_and_print(composed.config, smoke=False)
    require_expected(report)
    return 0
