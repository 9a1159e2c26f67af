"""`nnicompress show`: print the report of a finished run again."""

from __future__ import annotations

from pathlib import Path

from nnicompress.commands.arguments import parse
from nnicompress.errors import UserError, did_you_mean

HELP = """
usage: nnicompress show RUN

Prints the report of a finished run again. RUN is the run's folder, or its report.json.

  nnicompress show runs/taylorfo_resnet-1f0c2a9b
"""


def main(arguments: list[str]) -> int:
    """Print a report; UserError where there is no such run, JobError where it failed or isn't finished."""
    words = parse(arguments, command="show", trust=False).overrides
    if len(words) != 1:
        raise UserError(f"show takes one run, as in 'nnicompress show {next(iter(finished_runs()), 'runs/NAME')}'")
    run = Path(words[0])
    if not run.exists():
        known = finished_runs()
        hint = did_you_mean(words[0], known) or (f" (known: {', '.join(known)})" if known else "")
        raise UserError(f"no run {words[0]!r}{hint}")

    from nnicompress.commands.display import print_report
    from nnicompress.pipeline.run_dir import finished_report

    print_report(finished_report(run))
    return 0


def finished_runs() -> list[str]:
    """The finished runs below `./runs`, the latest first."""
    reports = sorted(Path("runs").glob("*/report.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [report.parent.as_posix() for report in reports]
