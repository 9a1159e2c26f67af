"""What commands print: the progress of a run, its report, and what a check found."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING

from nnicompress.api import run_config

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nnicompress.checks.outcome import CheckReport
    from nnicompress.report.record import Report


def run_and_print(config: DictConfig, *, smoke: bool, fresh: bool = False, explain: bool = False) -> Report:
    """Run a composed and checked config with its progress on the terminal, then print the report."""
    report = run_with_progress(config, smoke=smoke, fresh=fresh, explain=explain)
    print_report(report)
    return report


def run_with_progress(config: DictConfig, *, smoke: bool, fresh: bool = False, explain: bool = False) -> Report:
    """Run a composed and checked config with its progress on the terminal."""
    from nnicompress.report.progress import progress

    with progress() as listener:
        return run_config(config, smoke=smoke, fresh=fresh, explain=explain, listener=listener)


def print_report(report: Report) -> None:
    """Print a report, with what it missed of its expected numbers."""
    from rich.console import Console

    from nnicompress.report.terminal import print_report as render

    render(report, Console())


def print_check(found: CheckReport) -> None:
    """Print what a recipe will do, as `check` found it: its stages, and which modules each target selects."""
    print(
        f"{found.recipe}: {found.model} with {found.num_parameters:,} parameters, {found.data} data, on {found.device}"
    )
    print(f"  results go to {found.run_dir}")
    print("\nstages")
    width = max(len(stage.name) for stage in found.stages)
    for number, stage in enumerate(found.stages, start=1):
        print(f"  {number} {stage.name:<{width}}  {stage.what}".rstrip())
        for capability, why in stage.needs:
            print(f"    {'':<{width}}  needs {capability} ({why})")
    for target in found.targets:
        count = f"{len(target.modules)} module{'s' if len(target.modules) > 1 else ''}"
        print(f"\n{target.key} selects {count} ({', '.join(target.parameters)}; {target.what})")
        print(_filled(", ".join(target.modules)))
        for widths in target.widths:
            print(_filled(f"prunes {widths}"))
        for left in target.in_float:
            print(_filled(f"leaves in float {left}"))
    print("\nthe recipe is right")


def _filled(text: str) -> str:
    return textwrap.fill(text, _width(), initial_indent="  ", subsequent_indent="  ")


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 120)
