"""What a quantizer found: scheme, scale and zero point of every quantized tensor, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from nnicompress.quantization.scheme import Granularity, Scheme

DOCUMENT = "quantization.json"
ARRAYS = "quantization.safetensors"


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """One quantized tensor: `scale` (float32) and `zero_point` (int32) have `scheme.shape` of it, on the CPU."""

    scheme: Scheme
    scale: Tensor
    zero_point: Tensor


@dataclass(frozen=True, eq=False)
class QuantizationResult:
    """`tensors` maps the place of each quantized tensor to how it is quantized.

    A place is a module and what of it: `layer1.0.conv1/weight`, `/bias`, `/input_0`, `/output_0`; or one of the torch
    calls in a module's own forward, numbered from 0 by kind: `layer1.0/add_0/input_0`, `layer1.0/add_0/output_0`.
    """

    tensors: Mapping[str, QuantizedTensor]
    unquantized: tuple[str, ...] = ()
    """What was selected and stays in float, one line each, with the reason."""
    folded: Mapping[str, str] = field(default_factory=dict)
    """Place of a weight -> the batch norm that is folded into it before it is quantized."""
    signs: tuple[str, ...] = ()
    """Places of activations of which the signs pass, -1 or 1: no affine integers stand for these two."""

    @property
    def summary(self) -> str:
        """One line: how many tensors of which types."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.scheme.dtype] = counts.get(tensor.scheme.dtype, 0) + 1
        types = ", ".join(f"{count} {dtype}" for dtype, count in sorted(counts.items()))
        signs = f", {len(self.signs)} sign" if self.signs else ""
        return f"quantized {len(self.tensors) + len(self.signs)} tensors ({types}{signs})"


def save_quantization(result: QuantizationResult, folder: Path) -> None:
    """Write `result` into `folder`: JSON for names and schemes, safetensors for scales and zero points."""
    state = to_state(result)
    save_file(state["arrays"], str(folder / ARRAYS))
    (folder / DOCUMENT).write_text(json.dumps(state["document"]) + "\n", encoding="utf-8")


def load_quantization(folder: Path) -> QuantizationResult:
    """Read what `save_quantization` wrote."""
    document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
    return from_state({"document": document, "arrays": load_file(folder / ARRAYS)})


def to_state(result: QuantizationResult) -> dict[str, Any]:
    """`result` as tensors (`arrays`) and plain data (`document`)."""
    arrays: dict[str, Tensor] = {}
    for place, tensor in result.tensors.items():
        arrays[f"{place}.scale"], arrays[f"{place}.zero_point"] = tensor.scale.clone(), tensor.zero_point.clone()
    document = {
        "tensors": {place: asdict(tensor.scheme) for place, tensor in result.tensors.items()},
        "unquantized": list(result.unquantized),
        "folded": dict(result.folded),
        "signs": list(result.signs),
    }
    return {"document": document, "arrays": arrays}


def from_state(state: Mapping[str, Any]) -> QuantizationResult:
    """The inverse of `to_state`."""
    document, arrays = state["document"], state["arrays"]
    tensors = {}
    for place, values in document["tensors"].items():
        scheme = Scheme(**{**values, "granularity": Granularity(**values["granularity"])})
        tensors[place] = QuantizedTensor(scheme, arrays[f"{place}.scale"], arrays[f"{place}.zero_point"])
    return QuantizationResult(tensors, tuple(document["unquantized"]), document["folded"], tuple(document["signs"]))
