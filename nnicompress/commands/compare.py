"""`nnicompress compare`: finished runs side by side, best first, with the differences of their settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from nnicompress.commands.show import finished_runs
from nnicompress.errors import UserError, did_you_mean
from nnicompress.paths import shown

HELP = """
usage: nnicompress compare RUN RUN ... [--html FILE]

Shows runs side by side, best first by their metric: accuracy, and parameters, multiply-accumulates, size and latency
as shares of each run's own baseline; then every setting in which they differ. RUN is a run's folder, or the folder of
a sweep, which stands for all of its runs. A run without a result has a row that says why.

  nnicompress compare runs/taylorfo_resnet-1f0c2a9b runs/random_resnet-77ab01cd
  nnicompress compare runs/* --html compared.html

options:
  --html FILE   write the comparison as one self-contained page, plotted with the Pareto front
  --traceback   show where an error came from
"""


@dataclass(frozen=True)
class _Request:
    folders: tuple[Path, ...]
    html: Path | None


def main(arguments: list[str]) -> int:
    """Print the comparison; UserError for what is no run."""
    request = _request(arguments)

    from nnicompress.report.comparison import Entry, compare_runs, read_entry
    from nnicompress.report.comparison_table import print_comparison
    from nnicompress.sweep.conclusion import sweep_entries
    from nnicompress.sweep.ledger import Ledger, is_sweep

    entries: dict[Path, Entry] = {}  # `runs/*` names a sweep and its runs: each is shown once
    for folder in request.folders:
        if is_sweep(folder):
            alone = len(request.folders) == 1
            found = sweep_entries(Ledger(folder).points())
            found = found if alone else [replace(entry, label=shown(entry.folder)) for entry in found]
        else:
            found = [read_entry(folder)]
        for entry in found:
            entries.setdefault(entry.folder.resolve(), entry)
    if len(entries) < 2:
        raise UserError("compare takes two runs or more; 'nnicompress show RUN' prints a single one")
    comparison = compare_runs(tuple(entries.values()))
    print_comparison(comparison)
    if request.html is not None:
        from nnicompress.report.comparison_html import write_comparison

        write_comparison(comparison, request.html, title=f"{len(entries)} runs compared")
        print(f"\n{request.html}: this comparison, plotted with its Pareto front")
    return 0


def _request(arguments: list[str]) -> _Request:
    """The words of the command line, checked without importing anything heavy."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    html: Path | None = None
    runs: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--html":
            if not words or words[0].startswith("-"):
                raise UserError("--html needs a value, the file to write")
            html = _page(words.pop(0))
        elif word.startswith("-"):
            raise UserError(f"nnicompress compare has no option {word!r}{did_you_mean(word, ('--html',))}")
        else:
            runs.append(word)
    known = finished_runs()
    if not runs:
        example = " ".join([*known[:2], "runs/NAME", "runs/OTHER"][:2])
        raise UserError(f"compare takes two runs or more, as in 'nnicompress compare {example}'")
    return _Request(tuple(_folder(run, known) for run in runs), html)


def _folder(run: str, known: list[str]) -> Path:
    path = Path(run).expanduser()
    path = path.parent if path.name == "report.json" and path.is_file() else path
    if path.is_dir() and any((path / name).exists() for name in ("status.json", "report.json", "points")):
        return path
    if path.exists():
        raise UserError(f"{run!r} is no run; give the folder of a run or of a sweep")
    hint = did_you_mean(run, known) or (f" (known: {', '.join(known[:8])})" if known else "")
    raise UserError(f"no run {run!r}{hint}")


def _page(name: str) -> Path:
    path = Path(name).expanduser()
    if path.suffix not in (".html", ".htm"):
        raise UserError(f"--html: {name!r} has to end with .html")
    if path.is_dir():
        raise UserError(f"--html: {name!r} is a folder; give a file")
    if not path.parent.is_dir():
        raise UserError(f"--html: no folder {str(path.parent)!r}; create it first")
    return path
