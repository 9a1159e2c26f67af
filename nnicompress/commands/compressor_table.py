"""The table of `nnicompress ls compressors`: read off the comments that begin each preset, without a YAML parser."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nnicompress.paths import leading_comments, summary

HEAD = ("compressor", "paper", "needs", "use it for")


def compressor_table(presets: Mapping[str, Path]) -> str:
    """One line a preset; what its file does not say stays empty."""
    rows = [HEAD, *(_row(name, file) for name, file in presets.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    needs = "needs: data are batches of inputs; gradients, of the loss too; training changes weights before the removal"
    return "\n".join([*lines, "", needs])


def _row(name: str, file: Path) -> tuple[str, ...]:
    said = dict(re.findall(r"^(needs|use): *(.+)$", "\n".join(leading_comments(file)), re.MULTILINE))
    paper = re.search(r"([^(),]*\d{4})\)", summary(file))
    return name, paper[1].strip() if paper else "", said.get("needs", ""), said.get("use", "")
