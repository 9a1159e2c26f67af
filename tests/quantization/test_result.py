"""A result on disk is the result."""

from __future__ import annotations

from pathlib import Path

import torch

from nnicompress.quantization.result import (
    QuantizationResult,
    QuantizedTensor,
    load_quantization,
    save_quantization,
)
from nnicompress.quantization.scheme import Granularity, Scheme


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    per_channel = Scheme("int4", symmetric=True, granularity=Granularity(axis=0), full_range=True)
    integers = {"dtype": torch.int32}
    result = QuantizationResult(
        {
            "conv/weight": QuantizedTensor(per_channel, torch.tensor([0.5, 0.25]), torch.zeros(2, **integers)),
            "add_0/output_0": QuantizedTensor(Scheme("uint8"), torch.tensor(0.1), torch.tensor(7, **integers)),
        },
        ("head: no",),
        {"conv/weight": "norm"},
        ("conv/input_0",),
    )
    save_quantization(result, tmp_path)
    loaded = load_quantization(tmp_path)
    assert loaded.folded == {"conv/weight": "norm"} and loaded.signs == ("conv/input_0",)
    assert loaded.unquantized == result.unquantized and loaded.tensors.keys() == result.tensors.keys()
    for place, tensor in result.tensors.items():
        found = loaded.tensors[place]
        assert found.scheme == tensor.scheme
        assert torch.equal(found.scale, tensor.scale) and torch.equal(found.zero_point, tensor.zero_point)
        assert found.zero_point.dtype == torch.int32
    assert result.summary == "quantized 3 tensors (1 int4, 1 uint8, 1 sign)"
