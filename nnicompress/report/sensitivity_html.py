"""`sensitivity.html`: one file with everything in it, readable in light and dark, without a network."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from nnicompress.pipeline.run_dir import write_whole
from nnicompress.report.pages import render
from nnicompress.report.sensitivity_table import caption, drop, headline, modules, number, share
from nnicompress.sensitivity.result import FILE, Sensitivity

TEMPLATE = "sensitivity.html.j2"


def write_page(found: Sensitivity, path: Path) -> None:
    """Write the page to `path` atomically."""
    write_whole(path, render_page(found).encode())


def render_page(found: Sensitivity) -> str:
    """The whole page."""
    from nnicompress.report.sensitivity_figure import drops  # matplotlib takes a while to import

    return render(
        TEMPLATE,
        found=found,
        file=FILE,
        headline=headline(found),
        caption=caption(found),
        drop=drop,
        number=number,
        share=share,
        modules=modules,
        figure=Markup(drops(found)),  # XML already, written by a library that escapes
    )
