"""onnxruntime sessions for looking into a file: quiet, on one thread, with the optimised graph or more outputs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def optimised_graph(path: Path) -> Any:
    """The ONNX model that onnxruntime runs on this machine in place of the file `path`."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        _session(str(path), optimised)
        return onnx.load(optimised)


def session_with_outputs(path: Path, names: Sequence[str]) -> Any:
    """A session of the file `path` whose first outputs are the values `names`; the file's own follow."""
    import onnx

    model = onnx.load(path)
    more = [onnx.ValueInfoProto(name=name) for name in names]
    own = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([*more, *own])
    return _session(model.SerializeToString(), None)


def _session(model: str | bytes, optimised: Path | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that an optimised graph serves this machine only
    options.intra_op_num_threads = 1
    if optimised is not None:
        options.optimized_model_filepath = os.fspath(optimised)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
