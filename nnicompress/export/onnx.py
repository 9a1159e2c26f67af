"""`model.onnx` with a dynamic batch dimension, run by onnxruntime (extra `export`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from nnicompress.errors import ConfigError, JobError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export import onnx_qdq
from nnicompress.export.program import capture_program
from nnicompress.exporters import forget_code, quiet, reason
from nnicompress.quantization.frozen import QUANTIZE, FrozenModel

TOLERANCE = 1e-3
QUANTIZED_TOLERANCE = 0.1
"""Of a frozen model, relative to the largest output. An integer kernel sums exactly, the frozen model rounds at every
addition: a value halfway between two integers may become the other one, a whole step away, and later layers follow.
That is for activations of 8 bits; with fewer a step is larger in proportion.
`divergence.first_divergence` says where; what decides on a file's use is its own metric."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TRANSLATED = frozenset(
    (
        "add.Tensor",
        "add_.Tensor",
        "avg_pool2d.default",
        "batch_norm.default",
        "cat.default",
        "conv1d.default",
        "conv2d.default",
        "dropout.default",
        "embedding.default",
        "flatten.using_ints",
        "gelu.default",
        "hardtanh_.default",
        "layer_norm.default",
        "linear.default",
        "max_pool2d.default",
        "mean.dim",
        "mul.Tensor",
        "permute.default",
        "relu.default",
        "relu_.default",
        "sigmoid.default",
        "silu.default",
        "silu_.default",
        "softmax.int",
        "sym_size.int",
        "tanh.default",
        "transpose.int",
        "unsqueeze.default",
    )
)
"""ATen operators that torch's exporter translates whatever their arguments; a test exports all of them."""


def require_packages() -> None:
    """Raise a ConfigError with the pip line unless all that ONNX needs is installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"format 'onnx' needs {', '.join(missing)}: pip install 'nnicompress[export]'", key="stages.export.formats"
        )


def export_onnx(model: nn.Module, inputs: ModelInput, path: Path) -> None:
    """Export `model` (evaluation mode, CPU) to `path`, weights inside; dimension 0 of every input is the batch.

    A frozen model becomes a file that onnxruntime runs in integers (`onnx_qdq`).

    Raises:
        JobError: the exporter can't translate the model, or its forward fixes its batch size.
    """
    if isinstance(model, FrozenModel):
        translated = onnx_qdq.translate(model, inputs)
    else:
        translated = _translated(model, capture_program(model, inputs))
    translated.save(str(path), external_data=False)


def tolerance(model: nn.Module) -> float:
    """How far outputs of the file may be from the model's, relative to the largest."""
    if not isinstance(model, FrozenModel):
        return TOLERANCE
    levels = min(
        (step[2][4] - step[2][3] for step in model.frozen_program["steps"] if step[1] == QUANTIZE), default=255
    )
    return QUANTIZED_TOLERANCE * 255 / levels


def try_onnx(model: nn.Module, inputs: ModelInput) -> None:
    """Raise the JobError that `export_onnx` would raise; fast where every operator is known to have a translation.

    Capturing ResNet-20 takes a quarter of the time of its whole export, and most networks use these operators alone.
    """
    if isinstance(model, FrozenModel):
        onnx_qdq.translate(model, inputs)
        return
    program = capture_program(model, inputs)
    if not all(_surely_translates(node) for node in program.graph.nodes if node.op == "call_function"):
        _translated(model, program)


def _surely_translates(node: Node) -> bool:
    name = str(node.target).removeprefix("aten.")
    to_one_pixel = name == "adaptive_avg_pool2d.default" and list(node.args[1]) == [1, 1]  # type: ignore[arg-type]
    return name in TRANSLATED or to_one_pixel


def _translated(model: nn.Module, program: ExportedProgram) -> Any:
    """The ONNX program. An exported program goes in: given the model, the exporter would try other ways of capture
    where the first fails, and write a file that takes one batch size."""
    try:
        with torch.no_grad(), quiet():
            translated = torch.onnx.export(program, dynamo=True, verbose=False)
        assert translated is not None
        forget_code(translated.model)
        return translated
    except Exception as error:  # the exporter raises whatever its passes raise
        raise JobError(f"{type(model).__name__} can't be translated to ONNX: {reason(error)}") from error


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
        self.input_names = [entry.name for entry in self._session.get_inputs()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Inputs and outputs as the exported model's, on the CPU."""
        feed = input_tensors(self.input_names, (args, kwargs))
        results = [torch.from_numpy(array) for array in self._session.run(None, feed)]
        return tree_unflatten(results, self._spec) if self._spec is not None else results[0]


def input_tensors(names: Sequence[str], inputs: ModelInput) -> dict[str, Any]:
    """Arrays for the inputs `names` of a file, of the tensors in `inputs` in their order.

    Raises:
        JobError: they aren't as many.
    """
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if len(tensors) != len(names):
        raise JobError(f"onnx: the file takes {len(names)} inputs, and {len(tensors)} tensors were given")
    return {name: tensor.detach().numpy() for name, tensor in zip(names, tensors, strict=True)}


def output_structure(model: nn.Module, inputs: ModelInput) -> TreeSpec:
    """The structure of what `model` returns, with which ONNX's flat outputs are put together again."""
    args, kwargs = inputs
    with torch.no_grad():
        return tree_flatten(model(*args, **kwargs))[1]
