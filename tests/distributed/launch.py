"""Starts processes as a user does, by torchrun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import nnicompress

REPOSITORY = Path(nnicompress.__file__).resolve().parents[1]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def command(*arguments: str, processes: int = 2) -> list[str]:
    """How to start torchrun with `arguments`."""
    options = ["--nproc-per-node", str(processes), "--master-port", str(free_port())]
    return [sys.executable, "-m", "torch.distributed.run", *options, *arguments]


def environment(**more: str) -> dict[str, str]:
    """The package and the tests can be imported; one thread a process."""
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def torchrun(
    folder: Path, *arguments: str, processes: int = 2, timeout: float = 120, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end, in `folder`; `more` are environment variables."""
    return subprocess.run(
        command(*arguments, processes=processes),
        cwd=folder,
        env=environment(PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(folder)]), **more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
