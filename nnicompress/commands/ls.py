"""`nnicompress ls`: recipes with their summaries, and the options of each config group."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nnicompress.commands.arguments import parse
from nnicompress.commands.compressor_table import compressor_table
from nnicompress.errors import UserError, did_you_mean
from nnicompress.paths import find_groups, find_recipes, summary

HELP = """
usage: nnicompress ls [GROUP ...] [--config-dir DIR]

Lists the recipes and the options of each config group, each with its one-line summary.

  nnicompress ls               everything
  nnicompress ls recipe        the recipes alone
  nnicompress ls compressor    the options of one group
  nnicompress ls compressors   the compressors as a table: paper, what each needs, what to use it for

  --config-dir DIR  look into DIR as well; its files win over those of the same name
"""


TABLE = "compressors"


def main(arguments: list[str]) -> int:
    """List recipes and groups; UserError for a group that doesn't exist."""
    parsed = parse(arguments, command="ls", trust=False)
    wanted = parsed.overrides
    sections = {"recipe": find_recipes(parsed.config_dir), **find_groups(parsed.config_dir)}
    known = [*sections, TABLE]
    for name in wanted:
        if name not in known:
            raise UserError(f"no group named {name!r}{did_you_mean(name, sections)} (known: {', '.join(known)})")
    if TABLE in wanted:
        print(compressor_table(sections["compressor"]))
        wanted = tuple(name for name in wanted if name != TABLE)
        if not wanted:
            return 0
    chosen = {name: sections[name] for name in wanted} if wanted else sections
    print("\n\n".join(_section(name, options) for name, options in chosen.items()))
    return 0


def _section(group: str, options: Mapping[str, Path]) -> str:
    width = max(map(len, options), default=0)
    title = "recipe  (nnicompress run recipe=NAME)" if group == "recipe" else group
    lines = [f"  {name:<{width}}  {summary(file)}".rstrip() for name, file in options.items()]
    return "\n".join([title, *(lines or ["  (none)"])])
