"""Peak memory of an ONNX file: what a fresh process of onnxruntime adds while it loads the file and runs it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from nnicompress.errors import JobError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export.onnx import OnnxModel, input_tensors

_CHILD = Path(__file__).with_name("onnx_process.py")


def onnx_memory(path: Path, inputs: ModelInput, threads: int) -> int | None:
    """Bytes that loading `path` and three runs on `inputs` add to the resident memory at the worst moment.

    Read from the kernel's own record of a process that does nothing else, weights, arena and scratch space of the
    kernels included. None where there is no such record (Linux has it).

    Raises:
        JobError: the process failed.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.npz"
        np.savez(file, **input_tensors(OnnxModel(path).input_names, inputs))
        command = [sys.executable, str(_CHILD), str(path), str(file), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise JobError(f"{path.name}: its memory can't be measured: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout)
