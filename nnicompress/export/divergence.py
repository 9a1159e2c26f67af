"""Where an exported file parts from its frozen model: the first layer whose activations differ by more than a bound."""

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


def layer_differences(frozen: FrozenModel, path: Path, inputs: ModelInput) -> list[LayerDifference]:
    """Every quantized activation, in the order of the forward, on the same inputs through both.

    Differences are not reset on the way: a layer has those of its input, too.

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
        run(frozen, args, kwargs, observe=lambda name, value: values.setdefault(name, value))
    session = session_with_outputs(path, list(names))
    results = session.run(None, input_tensors([entry.name for entry in session.get_inputs()], inputs))
    # The file's own outputs come after those that were asked for.
    pairs = zip(names.values(), results, strict=False)
    return [_difference(modules[step], step, values[step], found) for step, found in pairs]


def first_divergence(frozen: FrozenModel, path: Path, inputs: ModelInput, bound: int) -> LayerDifference | None:
    """The first quantized activation that is off by more than `bound` steps; None: all are within.

    Raises:
        UserError: see `layer_differences`.
    """
    return next((one for one in layer_differences(frozen, path, inputs) if one.largest > bound), None)


def _difference(module: str, name: str, expected: Tensor, found: np.ndarray[Any, Any]) -> LayerDifference:
    steps = np.abs(expected.numpy().astype(np.int64) - found.astype(np.int64))
    return LayerDifference(module, name, int(steps.max(initial=0)), float((steps > 0).mean()) if steps.size else 0.0)
