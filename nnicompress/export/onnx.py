"""`model.onnx` with a dynamic batch dimension, run by onnxruntime (extra `export`)."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from nnicompress.errors import ConfigError, JobError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export.program import batch_dimension

TOLERANCE = 1e-3
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Raise a ConfigError with the pip line unless all that ONNX needs is installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"format 'onnx' needs {', '.join(missing)}: pip install 'nnicompress[export]'", key="stages.export.formats"
        )


def export_onnx(model: nn.Module, inputs: ModelInput, path: Path) -> None:
    """Export `model` (evaluation mode, CPU) to `path`, weights inside; dimension 0 of every input is the batch.

    Raises:
        JobError: the exporter can't translate the model.
    """
    args, kwargs = inputs
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                model,
                args,
                kwargs=kwargs,
                dynamo=True,
                dynamic_shapes=batch_dimension(model, inputs),
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=False)
    except Exception as error:  # the exporter raises whatever its passes raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise JobError(f"onnx: {type(model).__name__} can't be exported: {reason}") from error


class OnnxModel(nn.Module):
    """A loaded `.onnx` as a module in evaluation mode, as an evaluator takes it.

    Args:
        path: the file.
        spec: the structure of the eager model's output, which ONNX flattens; None: a single tensor.
        threads: onnxruntime's threads within an operator.
    """

    def __init__(self, path: Path, spec: TreeSpec | None = None, threads: int | None = None) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        self._spec = spec
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in self._session.get_inputs()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Inputs and outputs as the exported model's, on the CPU."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if len(tensors) != len(self._names):
            raise JobError(f"onnx: the file takes {len(self._names)} inputs, and {len(tensors)} tensors were given")
        feed = {name: t.detach().numpy() for name, t in zip(self._names, tensors, strict=True)}
        results = [torch.from_numpy(array) for array in self._session.run(None, feed)]
        return tree_unflatten(results, self._spec) if self._spec is not None else results[0]


def output_structure(model: nn.Module, inputs: ModelInput) -> TreeSpec:
    """The structure of what `model` returns, with which ONNX's flat outputs are put together again."""
    args, kwargs = inputs
    with torch.no_grad():
        return tree_flatten(model(*args, **kwargs))[1]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its own deprecations out of the run's output."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
