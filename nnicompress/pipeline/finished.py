"""A finished stage on disk: its record, written last, and whether it may be reused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nnicompress import distributed
from nnicompress.errors import JobError
from nnicompress.pipeline.keys import Parts, differences, file_digest
from nnicompress.pipeline.run_dir import PROGRESS
from nnicompress.report.record import CurveRecord, Record

FILE = "record.json"
PUBLISHED = "../../"
"""From a stage's folder to the run's."""


class FinishedStage(Record):
    """`record.json` of a stage: what it said of itself, the key that it was made under, and digests of what it left."""

    name: str
    seconds: float
    facts: dict[str, Any] = {}
    curves: tuple[CurveRecord, ...] = ()
    parts: Parts
    """The parts of its key."""
    files: dict[str, str]
    """Path relative to the stage's folder -> SHA-256."""

    @property
    def published(self) -> list[str]:
        """Names of the files and folders that it put into the run's folder."""
        paths = [name.removeprefix(PUBLISHED) for name in self.files if name.startswith(PUBLISHED)]
        return list(dict.fromkeys(path.partition("/")[0] for path in paths))


def bring(folder: Path, files: Iterable[str]) -> None:
    """Give every process the files of a finished stage that the main one has in `folder`."""
    for name in files:
        content = distributed.from_main((folder / name).read_bytes)
        if not distributed.is_main():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def read_finished(folder: Path) -> FinishedStage | None:
    """The record of a stage, None where the stage isn't finished or was written by another version."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return FinishedStage.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        return None


def digests(run: Path, stage: Path, published: list[str]) -> dict[str, str]:
    """The digests of what a stage left in its folder `stage` (still a temporary one) and published in the run's.

    Of a published folder each file has its own: what others add to it (a model card, a cache) changes nothing.
    """
    files = {file.name: file_digest(file) for file in sorted(stage.iterdir()) if file.name not in (FILE, PROGRESS)}
    for name in published:
        inside = sorted((run / name).rglob("*")) if (run / name).is_dir() else [run / name]
        files |= {f"{PUBLISHED}{f.relative_to(run).as_posix()}": file_digest(f) for f in inside if f.is_file()}
    return files


def reason_to_run(folder: Path, found: FinishedStage | None, parts: Parts) -> str | None:
    """Why the stage must run, None where its result may be reused.

    Raises:
        JobError: a file of the stage is not what was written.
    """
    if found is None:
        return "it has not run before" if not folder.exists() else "its record is of another version"
    if changed := differences(found.parts, parts):
        return "; ".join(changed[:4]) + (f" (and {len(changed) - 4} more)" if len(changed) > 4 else "")
    for name, digest in found.files.items():
        path = folder / name
        if not path.exists():
            return f"{path.name} is gone"
        if file_digest(path) != digest:
            raise JobError(
                f"{path.resolve()} is damaged: its content is not what the {found.name} stage wrote; remove {folder} "
                "to run from this stage again (earlier stages are kept), or start over with --fresh"
            )
    return None
