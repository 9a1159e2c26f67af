"""What became of each point of a sweep, as files: the only thing that every launcher's processes share is the disk.

runs/sweep-1f0c2a9b/
  points/000.json    a point's overrides, its run's folder, whether it has ended and how
  compare.html       the runs side by side, written at the end
  multirun.yaml      Hydra's own; launchers keep their logs here, too
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nnicompress.pipeline.run_dir import write_json

POINTS = "points"
PAGE = "compare.html"


@dataclass(frozen=True)
class Point:
    """One point of a sweep; `number` counts from 0 as Hydra's jobs do."""

    number: int
    overrides: tuple[str, ...]
    run_dir: str
    """Absolute."""
    ended: bool = False
    """False in the end, too, where its process died."""
    error: str | None = None

    @property
    def name(self) -> str:
        """Its overrides as they were given."""
        return " ".join(self.overrides)


@dataclass(frozen=True)
class Ledger:
    """The points of the sweep in `folder`; each is written by the process that runs it."""

    folder: Path

    def start_over(self) -> None:
        """Forget the points of an earlier sweep in this folder."""
        shutil.rmtree(self.folder / POINTS, ignore_errors=True)

    def write(self, point: Point) -> None:
        """Note how it stands with a point."""
        (self.folder / POINTS).mkdir(parents=True, exist_ok=True)
        write_json(self.folder / POINTS / f"{point.number:03d}.json", asdict(point))

    def points(self) -> list[Point]:
        """All that were begun, by their numbers."""
        files = self.folder.glob(f"{POINTS}/*.json")
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return sorted((Point(**{**one, "overrides": tuple(one["overrides"])}) for one in found), key=_number)


def is_sweep(folder: Path) -> bool:
    """Whether `folder` is one of a sweep."""
    return (folder / POINTS).is_dir()


def sweep_folder(overrides: Sequence[str], *, smoke: bool) -> Path:
    """`runs/sweep-<8 hexadecimal digits of the overrides>`: the same sweep has the same folder.

    How it is carried out (`hydra.*`, `hydra/launcher`) is not in the digits, so that a search with more trials, or on
    more processes, goes on in the same place.
    """
    relevant = [text for text in overrides if not text.startswith(("hydra.", "hydra/launcher"))]
    digits = hashlib.sha256(json.dumps([relevant, smoke]).encode()).hexdigest()[:8]
    return Path("runs") / f"sweep-{digits}"


def _number(point: Point) -> int:
    return point.number
