"""The folder of a run: one writer at a time, a status that is always true, stages that appear whole or not at all.

runs/taylorfo_resnet-1f0c2a9b/
  status.json      running, done or failed; which stage; who writes it
  manifest.json    the resolved recipe, seed, versions, machine, code and data that made it
  stages/01_train/ what each stage left: record.json and its weights
  stages/.02_prune.partial/  the stage at work; progress.pt is its last consistent state
  model/           the compact model (nnicompress.load)    model.pt2, model.onnx    as the recipe asks
  report.json, report.html
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from nnicompress.errors import ConfigError, JobError, RunLockedError
from nnicompress.report.record import Report

STATUS_FILE = "status.json"
MANIFEST_FILE = "manifest.json"
LOCK_FILE = ".lock"
PROGRESS = "progress.pt"
CARD = "README.md"
"""In `model/`, made of the report."""
# What a run owns in its folder: all of it is removed when the run starts over, and nothing else is touched.
REPORTS = ("report.json", "report.html")
EXPORTS = ("model", "model.pt2", "model.onnx", "sensitivity.yaml", "sensitivity.html")
OWNED = (*REPORTS, *EXPORTS, "stages", "logs", "code.diff", MANIFEST_FILE)

State = Literal["running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class RunStatus:
    """What `status.json` says."""

    state: State
    started: str
    pid: int
    stage: str | None = None
    finished: str | None = None
    error: str | None = None


def now() -> str:
    """The time, ISO 8601 in UTC to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_json(path: Path, content: Any) -> None:
    """Write `content` so that a reader sees the old file or the new one, never a part."""
    write_whole(path, (json.dumps(content, indent=1, sort_keys=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or as it was before, also when the machine loses its power."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_status(folder: str | Path) -> RunStatus | None:
    """The status of the run in `folder`, None where there is none.

    A run whose process was killed can't say so any more: `running` without the lock held is given as `failed`.
    """
    folder = Path(folder)
    path = folder / STATUS_FILE
    if not path.is_file():
        return None
    status = RunStatus(**json.loads(path.read_text(encoding="utf-8")))
    if status.state == "running" and not _is_locked(folder):
        return replace(status, state="failed", error=f"its process ({status.pid}) ended without finishing")
    return status


def finished_report(run: str | Path) -> Report:
    """The report of a finished run.

    Raises:
        UserError: there is no such run.
        JobError: the run is not finished, or failed; the message says where.
    """
    path = Path(run)
    status = read_status(path) if path.is_dir() else None
    if status is not None and status.state != "done":
        at = f" in stage {status.stage!r}" if status.stage else ""
        why = f": {status.error}" if status.error and status.state == "failed" else ""
        raise JobError(f"{path}: the run is {status.state}{at}{why}; it has no report; run the same command again")
    return Report.load(path)


def _is_locked(folder: Path) -> bool:
    lock = FileLock(folder / LOCK_FILE)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


class RunFolder:
    """An open run folder; made by `open_run`, which holds the lock for as long as it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._status = RunStatus("running", now(), os.getpid())
        self.published: list[str] = []
        """What the stage at work has moved into the folder."""

    @property
    def status(self) -> RunStatus:
        """What was last written to `status.json`."""
        return self._status

    def update(self, **changes: Any) -> None:
        """Change fields of the status and write it."""
        self._status = replace(self._status, **changes)
        write_json(self.path / STATUS_FILE, asdict(self._status))

    def give_up(self, state: State, error: str) -> None:
        """Say that the run ended without a result, where that can still be written."""
        # On a full disk the status can't be; `read_status` then finds a process that is gone, and says so.
        with suppress(OSError):
            self.update(state=state, finished=now(), error=error)

    def start_over(self) -> None:
        """Say that the run is running, then remove all that an earlier run left, its report first."""
        self.update()
        for name in OWNED:
            remove_whole(self.path / name)

    def finished_stage(self, index: int, name: str) -> Path:
        """Where stage `index` lies when it is finished; the folder may be missing."""
        return self.path / "stages" / f"{index:02d}_{name}"

    def has_begun(self, index: int, name: str) -> bool:
        """Whether an earlier process was at work on stage `index`, and did not end it."""
        return self._partial(index, name).exists()

    def discard_from(self, index: int) -> None:
        """Remove the stages from `index` on, and what they have left in the run's folder: that is about to change.

        What lies in the temporary folder of stage `index` stays: it may go on from there.
        """
        kept: list[str] = []
        for folder in self._stage_folders():
            number = int(folder.name.lstrip(".")[:2])
            if number < index:
                kept += _published_by(folder)
            elif number > index or not folder.name.startswith("."):
                remove_whole(folder)
        for name in (*REPORTS, f"model/{CARD}", *EXPORTS):
            if name not in kept:
                remove_whole(self.path / name)

    def forget_all_but(self, count: int, published: Sequence[str]) -> None:
        """Remove stages behind the last of `count`, what was begun and left, and exported files that no stage made."""
        for folder in self._stage_folders():
            if folder.name.startswith(".") or int(folder.name[:2]) > count:
                remove_whole(folder)
        for name in EXPORTS:
            if name not in published:
                remove_whole(self.path / name)

    def _stage_folders(self) -> list[Path]:
        stages = self.path / "stages"
        names = sorted(stages.iterdir()) if stages.is_dir() else []
        return [path for path in names if path.is_dir() and path.name.lstrip(".")[:2].isdigit()]

    def _partial(self, index: int, name: str) -> Path:
        return self.path / "stages" / f".{index:02d}_{name}.partial"

    @contextmanager
    def stage(self, index: int, name: str) -> Iterator[Path]:
        """A temporary folder that becomes `stages/<index>_<name>` when the block ends well.

        Else it vanishes, but for the stage's last consistent state (`PROGRESS`), from which it can go on. The status
        names the stage.
        """
        stages = self.path / "stages"
        stages.mkdir(exist_ok=True)
        partial = self._partial(index, name)
        for other in stages.glob(f".{index:02d}_*.partial"):
            if other != partial:
                remove_whole(other)
        partial.mkdir(exist_ok=True)
        _keep_only(partial, PROGRESS)
        self.update(stage=name)
        try:
            yield partial
        except BaseException:
            _keep_only(partial, PROGRESS)
            if not any(partial.iterdir()):
                partial.rmdir()
            raise
        (partial / PROGRESS).unlink(missing_ok=True)
        os.replace(partial, self.finished_stage(index, name))

    def publish(self, source: Path, name: str) -> Path:
        """Move the finished file or folder `source` to `name` in the run's folder, in one step."""
        assert name in OWNED, name
        target = self.path / name
        remove_whole(target)
        os.replace(source, target)
        self.published.append(name)
        return target


def remove_whole(path: Path) -> None:
    """Remove a file or folder so that whoever looks meanwhile sees it whole or not at all."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f".{path.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def _published_by(stage: Path) -> list[str]:
    """The names in the run's folder that a stage's record lays claim to."""
    try:
        files = json.loads((stage / "record.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return []
    return [path.split("/")[2] for path in files if path.startswith("../../")]


def _keep_only(folder: Path, name: str) -> None:
    for path in folder.iterdir():
        if path.name != name:
            remove_whole(path)


@contextmanager
def open_run(folder: Path, *, fresh: bool = False) -> Iterator[RunFolder]:
    """Lock `folder` (made where missing); at the end the status says done, failed or interrupted.

    What an earlier run left stays, for its stages may be reused; with `fresh` it is removed first.

    Raises:
        RunLockedError: another process is writing this run.
        ConfigError: the folder holds something that is no run.
    """
    refuse_unusable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        # Whoever reads a status holds the lock for a moment, to see whether the run is alive.
        lock.acquire(timeout=1)
    except Timeout:
        status = read_status(folder)
        who = f"process {status.pid}" if status is not None else "another process"
        raise RunLockedError(
            f"{folder}: {who} is writing this run; wait for it, or give a run_dir of its own"
        ) from None
    try:
        run = RunFolder(folder)
        if fresh:
            run.start_over()
        else:
            run.update()
        try:
            yield run
        except BaseException as error:
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
            run.give_up("interrupted" if stopped else "failed", _one_line(error))
            raise
        run.update(state="done", stage=None, finished=now())
    finally:
        lock.release()


def refuse_unusable(folder: Path) -> None:
    """Raise a ConfigError where no run can be written to `folder`; nothing is written or made.

    A folder with content that is no run is not ours to clean. Dot files and logs (Hydra's) may be there.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"{existing} is a file; give a folder", key="run_dir")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{existing} can't be written to; give another folder", key="run_dir")
    if existing != folder.absolute() or (folder / STATUS_FILE).exists():
        return
    foreign = [p.name for p in folder.iterdir() if not p.name.startswith(".") and p.suffix != ".log"]
    if foreign:
        raise ConfigError(f"{folder} holds {foreign[0]!r} and is no run; give an empty or a new folder", key="run_dir")


def _one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    if isinstance(error, SystemExit):
        return "terminated"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
