"""Where a run comes from: recipe, seed, data, code, versions and machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from nnicompress.errors import UserError
from nnicompress.pipeline.job import Job
from nnicompress.pipeline.run_dir import MANIFEST_FILE, now, write_json, write_whole
from nnicompress.report.record import Report

DIFF_FILE = "code.diff"
PACKAGES = (
    "nnicompress",
    "torch",
    "numpy",
    "torchmetrics",
    "safetensors",
    "hydra-core",
    "onnxruntime",
    "transformers",
    "accelerate",
    "tokenizers",
    "pytorch-lightning",
    "lightning",
    "torchvision",
    "timm",
)


def write_manifest(job: Job, folder: Path) -> None:
    """Write the run's origin, and beside it the changes that no commit of the user's repository holds yet."""
    (folder / DIFF_FILE).unlink(missing_ok=True)
    diff = _git_diff(Path.cwd())
    if diff:
        write_whole(folder / DIFF_FILE, diff)
    write_json(folder / MANIFEST_FILE, manifest(job))


def conclude_manifest(folder: Path, report: Report) -> None:
    """Add when the run ended and how long each stage took."""
    content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    content |= {"finished": now(), "seconds": report.seconds, "stages": {s.name: s.seconds for s in report.stages}}
    write_json(folder / MANIFEST_FILE, content)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        UserError: there is none, or it can't be read.
    """
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no run: it has no {MANIFEST_FILE}") from error
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST_FILE} can't be read: {error}") from error
    return content


def manifest(job: Job) -> dict[str, Any]:
    """The run's origin as JSON-able values, at its start."""
    return {
        "name": job.name,
        "started": now(),
        "seed": job.seed,
        "smoke": job.smoke,
        "data": {"class": type(job.data).__qualname__, "fingerprint": job.data.fingerprint()},
        "versions": versions(),
        "machine": {"name": machine(), "platform": platform.platform(), "cores": os.cpu_count()},
        "code": {"folder": str(Path.cwd()), **_git(Path.cwd())},
        "config": job.resolved_config,
    }


def versions() -> dict[str, str]:
    """Python's and the packages' versions, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # Running from a source tree, or an extra that is not installed: nothing to state.
            continue
    return found


def machine() -> str:
    """The processor's name and the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{_processor()}, {cores} core{'' if cores == 1 else 's'}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_diff(folder: Path) -> bytes:
    """What the working tree of the repository around `folder` changes since its commit; empty outside of one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "diff", "--binary", "HEAD"], capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""


def _untracked(status: str, most: int = 50) -> list[str]:
    """Files that no diff shows."""
    return [line[3:] for line in status.splitlines() if line.startswith("??")][:most]


def _git(folder: Path) -> dict[str, Any]:
    """The commit of the repository around `folder` and whether files differ from it; empty outside of one."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = git("status", "--porcelain")
    return {"commit": commit, "dirty": bool(changed), "untracked": _untracked(changed or "")}
