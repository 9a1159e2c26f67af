"""Run as a process of its own: loads an ONNX file, runs it, and prints the bytes that it took at the worst moment."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def resident(field: str) -> int:
    """Bytes of `VmRSS` (now) or `VmHWM` (the most since it was reset)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def main(path: str, inputs: str, threads: str) -> None:
    """Print what the file adds to an empty process."""
    feed = dict(np.load(inputs))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
    before = resident("VmRSS")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(3):
        session.run(None, feed)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
