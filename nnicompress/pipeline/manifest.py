"""Where a run comes from: recipe, seed, data, code, versions and machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from nnicompress.pipeline.job import Job
from nnicompress.pipeline.run_dir import now

PACKAGES = ("nnicompress", "torch", "numpy", "torchmetrics", "safetensors", "hydra-core", "onnxruntime", "transformers")


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
    return {"commit": commit, "dirty": bool(git("status", "--porcelain"))}
