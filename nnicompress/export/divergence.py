"""Where an exported file parts from its frozen model: the first layer that differs by more than rounding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnicompress.errors import UserError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export.onnx import input_tensors
from nnicompress.export.onnx_qdq import QUANTIZED_VALUES
from nnicompress.export.onnx_session import session_with_outputs
from nnicompress.quantization.frozen import QUANTIZE, FrozenModel, run

ROUNDING = 0.5
"""Steps: what rounding alone moves an element on average stays below this for many layers."""


@dataclass(frozen=True)
class LayerDifference:
    """How far a quantized activation of the file is from the frozen model's, in steps of its quantizer.

    `module` is the path of the module that quantizes it, `value` its name in the frozen program.
    """

    module: str
    value: str
    largest: int
    """The most that an element is off."""
    share: float
    """Elements that are off at all."""
    mean: float
    """How far an element is off on average."""


def layer_differences(
    frozen: FrozenModel, path: Path, inputs: ModelInput, *, beside: FrozenModel | None = None
) -> list[LayerDifference]:
    """Every quantized activation, in the order of the forward, on the same inputs through both.

    Differences are not reset on the way: a layer has those of its input, too. The file is that of `frozen`; it may be
    held `beside` a rewrite of it (`lowering.lower`) in its place.

    Raises:
        UserError: `path` is no file that was exported from this frozen model.
    """
    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    modules = {step[0]: step[4] for step in frozen.frozen_program["steps"] if step[1] == QUANTIZE}
    names: dict[str, str] = json.loads(metadata.get(QUANTIZED_VALUES, "{}"))
    if not names or list(names.values()) != list(modules):
        raise UserError(f"{path} wasn't exported from this quantized model: its quantized activations are others")
    args, kwargs = inputs
    values: dict[str, Any] = {}
    with torch.no_grad():
        run(beside or frozen, args, kwargs, observe=lambda name, value: values.setdefault(name, value))
    session = session_with_outputs(path, list(names))
    results = session.run(None, input_tensors([entry.name for entry in session.get_inputs()], inputs))
    # The file's own outputs come after those that were asked for.
    pairs = zip(names.values(), results, strict=False)
    return [_difference(modules[step], step, values[step], found) for step, found in pairs]


def first_divergence(
    frozen: FrozenModel, path: Path, inputs: ModelInput, bound: float = ROUNDING
) -> LayerDifference | None:
    """The first quantized activation that is at once off by more than `bound` steps on average; None: there is none.

    A rounding tie moves few elements, by a step or, some layers on, by several: in a deep network that grows from layer
    to layer. A layer that computes something else moves most elements, and more than twice as far as all before it.

    Raises:
        UserError: see `layer_differences`.
    """
    most = 0.0
    for one in layer_differences(frozen, path, inputs):
        if one.mean > max(bound, 2 * most):
            return one
        most = max(most, one.mean)
    return None


def _difference(module: str, name: str, expected: Tensor, found: np.ndarray[Any, Any]) -> LayerDifference:
    steps = np.abs(expected.numpy().astype(np.int64) - found.astype(np.int64))
    if not steps.size:
        return LayerDifference(module, name, 0, 0.0, 0.0)
    return LayerDifference(module, name, int(steps.max()), float((steps > 0).mean()), float(steps.mean()))
