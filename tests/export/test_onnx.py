"""`model.onnx` in onnxruntime."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import ConfigError
from nnicompress.export import onnx
from nnicompress.export.comparison import compare_outputs

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sum": self.a(x) + self.b(y), "mean": self.a(x).mean(1)}


def test_two_inputs_a_dict_and_any_batch(tmp_path: Path) -> None:
    model = TwoInputs().eval()
    example = ((torch.randn(2, 3),), {"y": torch.randn(2, 5)})
    onnx.export_onnx(model, example, tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"], "weights are inside the file"
    loaded = onnx.OnnxModel(tmp_path / "m.onnx", onnx.output_structure(model, example)).eval()
    batches = [((torch.randn(n, 3),), {"y": torch.randn(n, 5)}) for n in (1, 6)]
    assert compare_outputs(loaded, model, batches, tolerance=onnx.TOLERANCE, what="m.onnx") < 1e-5
    assert set(loaded(*batches[0][0], **batches[0][1])) == {"sum", "mean"}


def test_missing_packages_are_named_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.require_packages()
    monkeypatch.setattr(onnx, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ConfigError, match=r"needs no_such_package: pip install 'nnicompress\[export\]'"):
        onnx.require_packages()
