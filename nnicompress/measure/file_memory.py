"""Peak memory of an ONNX file: what a fresh process of onnxruntime adds while it loads the file and runs it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnicompress.errors import JobError

_CHILD = Path(__file__).with_name("onnx_process.py")


def onnx_memory(path: Path, feed: Mapping[str, np.ndarray[Any, Any]], threads: int) -> int | None:
    """Bytes that loading `path` and three runs on `feed` add to the resident memory at the worst moment.

    Read from the kernel's own record of a process that does nothing else, weights, arena and scratch space of the
    kernels included. None where there is no such record (Linux has it).

    Raises:
        JobError: the process failed.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, **feed)
        command = [sys.executable, str(_CHILD), str(path), str(inputs), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise JobError(f"{path.name}: its memory can't be measured: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout)
