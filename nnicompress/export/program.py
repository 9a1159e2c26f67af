"""`model.pt2`: torch.export with a dynamic batch dimension; loads and runs with torch alone."""

from __future__ import annotations

import inspect
import io
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from nnicompress.errors import JobError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.exporters import quiet, reason

TOLERANCE = 1e-4


def export_program(model: nn.Module, inputs: ModelInput, path: Path) -> None:
    """Export `model` (evaluation mode, CPU) to `path`; dimension 0 of every input tensor is the batch, and dynamic.

    `inputs` hold at least two samples: torch.export takes a size of 1 for a constant.

    Raises:
        JobError: the forward can't be exported, or fixes its batch size.
    """
    # Through memory: torch's own writer ends the whole process when a disk is full.
    content = io.BytesIO()
    program = capture_program(model, inputs)
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # the author's folders and lines of code
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def try_program(model: nn.Module, inputs: ModelInput) -> None:
    """Raise the JobError that `export_program` would raise."""
    capture_program(model, inputs)


def capture_program(model: nn.Module, inputs: ModelInput) -> ExportedProgram:
    """The exported program of `model`, without writing it.

    Raises:
        JobError: as `export_program`.
    """
    args, kwargs = inputs
    try:
        with torch.no_grad(), quiet():
            named = with_named_arguments(model, inputs)
            return torch.export.export(named, args, kwargs, dynamic_shapes=batch_dimension(named, inputs), strict=False)
    except Exception as error:  # torch.export raises whatever the user's forward and its own checks raise
        why = reason(error)
        raise JobError(
            f"{type(model).__name__} can't be exported by torch.export with a dynamic batch: {why}"
        ) from error


def with_named_arguments(model: nn.Module, inputs: ModelInput) -> nn.Module:
    """`model`, or a module around it, whose forward names each argument of `inputs`.

    torch.export (2.13) finds no place for the dynamic dimensions of what a forward takes as `*args` or `**kwargs`.
    """
    args, kwargs = inputs
    kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
    if not kinds & {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
        return model
    names = ["self", *(f"input_{number}" for number in range(len(args))), *kwargs]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    around = type("Named", (nn.Module,), {"forward": forward})()
    around.model = model
    return around.train(model.training)  # type: ignore[no-any-return]


def batch_dimension(model: nn.Module, inputs: ModelInput) -> Any:
    """`dynamic_shapes` of torch.export in which dimension 0 of every input tensor may vary, and in tensors of integers
    (tokens and their masks) the others, too, where the forward lets them."""
    args, kwargs = inputs
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.dim():
            tokens = not leaf.is_floating_point()
            shapes[leaf] = {0: Dim.DYNAMIC, **{dim: Dim.AUTO for dim in range(1, leaf.dim()) if tokens}}
    return shapes.dynamic_shapes(model, args, kwargs)  # type: ignore[no-untyped-call]


class ProgramModel(nn.Module):
    """A loaded `.pt2` as a module in evaluation mode without parameters of its own, as an evaluator takes it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        # In a tuple, so that it is no submodule: exported programs refuse train() and eval().
        self._program = (torch.export.load(path).module(),)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Inputs and outputs as the exported model's, on the CPU."""
        return self._program[0](*args, **kwargs)
