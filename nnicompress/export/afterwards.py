"""Exporting the model of a finished run, long after it ran."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from nnicompress.errors import ConfigError, RunLockedError, UserError
from nnicompress.evaluators.inputs import resized
from nnicompress.export import standalone
from nnicompress.export.comparison import compare_outputs
from nnicompress.export.formats import FORMATS
from nnicompress.export.plain import FOLDER, load
from nnicompress.measure.size import bytes_of
from nnicompress.pipeline.run_dir import LOCK_FILE, finished_report

BATCH_SIZES = (1, 3)
"""Those at which a file is compared with the model; it was exported at another."""


@dataclass(frozen=True)
class Written:
    """An exported file and its largest relative difference to the model, at these batch sizes."""

    path: Path
    runtime: str
    bytes: int
    max_relative_difference: float
    batch_sizes: tuple[int, ...] = BATCH_SIZES


def export_run(
    run: Path, formats: Sequence[str] = (), *, output: Path | None = None, trust: Iterable[str] = ()
) -> list[Written]:
    """Write the model of the finished run in the folder `run` to `output` (None: that folder), each file at once.

    `formats` are keys of FORMATS; none: each whose file isn't there yet. `trust` is as for `nnicompress.load`.

    Raises:
        UserError: there is no finished run or no model in it, a file is there already, a package is missing.
        JobError: the run isn't finished or is being written, the model can't be exported, or a file isn't the model.
    """
    finished_report(run)
    folder = run if output is None else output
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} can't be written to; --output FOLDER writes elsewhere")
    present = [name for name, form in FORMATS.items() if (folder / form.file).exists()]
    chosen = list(formats) or [name for name in FORMATS if name not in present]
    taken = [name for name in chosen if name in present] or ([] if chosen else present)
    if taken:
        raise UserError(f"{folder / FORMATS[taken[0]].file} is there already; --output FOLDER writes another one")
    for name in chosen:
        try:
            FORMATS[name].require()
        except ConfigError as error:
            raise UserError(error.message) from error
    with _locked(run):
        model = load(run, trust=trust)
        example = standalone.example_inputs(standalone.read(run / FOLDER))
        checks = [resized(example, size) for size in BATCH_SIZES]
        written = []
        # All files are made and compared before the first appears.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as workplace:
            for name in chosen:
                form = FORMATS[name]
                file = Path(workplace) / form.file
                form.export(model, example, file)
                loaded = form.load(file, model, example).eval()
                difference = compare_outputs(loaded, model, checks, tolerance=form.tolerance(model), what=form.file)
                written.append(Written(folder / form.file, form.runtime, bytes_of(file), difference))
            for one in written:
                os.replace(Path(workplace) / one.path.name, one.path)
    return written


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Keep a run from starting over in the folder meanwhile."""
    try:
        with FileLock(run / LOCK_FILE).acquire(timeout=0):
            yield
    except Timeout as error:
        raise RunLockedError(f"{run}: another process is writing this run; wait until it is done") from error
