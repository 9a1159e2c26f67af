"""The formats that the `export` stage knows: how each is written, loaded again, and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from torch import nn

from nnicompress.evaluators.contract import ModelInput
from nnicompress.export import onnx, program
from nnicompress.export.integer_coverage import IntegerCoverage, integer_coverage


@dataclass(frozen=True)
class Format:
    """One file format.

    `export(model, inputs, path)` writes it, `attempt(model, inputs)` finds out whether that would work, `load(path,
    model, inputs)` runs it as a module (`model` and `inputs` tell the structure of the outputs), `tolerance(model)`
    bounds the relative difference of their outputs.
    """

    file: str
    runtime: str
    tolerance: Callable[[nn.Module], float]
    require: Callable[[], None]
    export: Callable[[nn.Module, ModelInput, Path], None]
    attempt: Callable[[nn.Module, ModelInput], None]
    load: Callable[[Path, nn.Module, ModelInput], nn.Module]
    coverage: Callable[[Path], IntegerCoverage] | None = None
    """Which operators of a quantized model's file run in integers; None: the runtime computes in float."""


def _nothing() -> None:
    """pt2 needs torch alone."""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "pt2": Format(
            file="model.pt2",
            runtime="torch.export",
            tolerance=lambda model: program.TOLERANCE,
            require=_nothing,
            export=program.export_program,
            attempt=program.try_program,
            load=lambda path, model, inputs: program.ProgramModel(path),
        ),
        "onnx": Format(
            file="model.onnx",
            runtime="onnxruntime",
            tolerance=onnx.tolerance,
            require=onnx.require_packages,
            export=onnx.export_onnx,
            attempt=onnx.try_onnx,
            load=lambda path, model, inputs: onnx.OnnxModel(path, onnx.output_structure(model, inputs)),
            coverage=integer_coverage,
        ),
    }
)
