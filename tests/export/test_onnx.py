"""`model.onnx` in onnxruntime."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import ConfigError, JobError
from nnicompress.export import onnx
from nnicompress.export.comparison import compare_outputs
from nnicompress.export.program import capture_program

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


def test_the_file_says_nothing_of_the_folders_and_the_code_it_was_made_from(tmp_path: Path) -> None:
    model, example = TwoInputs().eval(), ((torch.randn(2, 3),), {"y": torch.randn(2, 5)})
    onnx.export_onnx(model, example, tmp_path / "m.onnx")
    written = (tmp_path / "m.onnx").read_bytes()
    assert Path(__file__).name.encode() not in written and b"self.a(x)" not in written


def test_missing_packages_are_named_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.require_packages()
    monkeypatch.setattr(onnx, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ConfigError, match=r"needs no_such_package: pip install 'nnicompress\[export\]'"):
        onnx.require_packages()


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Singular(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


REFUSED = [
    (FixedBatch(), (2, 6), "FixedBatch can't be exported .*: its forward works for one batch size only"),
    (Singular(), (2, 3, 3), "Singular can't be translated to ONNX: No ONNX function found for .*_linalg_svd"),
    (Branches(), (2, 3), r"its forward branches on the values of a tensor \(.*test_onnx.py:\d+: return x if x.sum"),
]


@pytest.mark.parametrize(("model", "shape", "message"), REFUSED)
def test_an_attempt_finds_what_an_export_would(
    model: nn.Module, shape: tuple[int, ...], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = ((torch.randn(*shape),), {})
    for refused in (lambda: onnx.try_onnx(model, inputs), lambda: onnx.export_onnx(model, inputs, tmp_path / "m.onnx")):
        with pytest.raises(JobError, match=message) as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", ""), "what the exporter prints of a failure stays out of the run's output"


class Everything(nn.Module):
    """Every operator that is taken to be translated without a trial."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.sequence = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.GELU(), nn.Dropout(0.5))
        self.image = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.ReLU6(inplace=True),
            nn.SiLU(),
            nn.SiLU(inplace=True),
            nn.AvgPool2d(2),
        )
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor, images: Tensor) -> Tensor:
        read = self.norm(self.sequence(self.embedding(tokens).transpose(1, 2)).permute(0, 2, 1)).mean(1)
        seen = torch.flatten(nn.functional.adaptive_avg_pool2d(self.image(images), 1), 1)
        seen = torch.cat([seen, torch.tanh(read)], 1).unsqueeze(1).mean(1)[:, :4] * torch.sigmoid(read)
        seen += read
        ones = torch.ones(images.shape[0], 3)
        return torch.softmax(self.head(seen + torch.relu(read)), 1) + ones


def test_every_operator_that_is_taken_on_trust_is_translated(tmp_path: Path) -> None:
    model = Everything().eval()
    inputs = ((torch.randint(5, (2, 7)), torch.randn(2, 1, 12, 12)), {})
    nodes = capture_program(model, inputs).graph.nodes
    used = {str(node.target).removeprefix("aten.") for node in nodes if node.op == "call_function"}
    assert onnx.TRANSLATED - used == set()
    onnx.export_onnx(model, inputs, tmp_path / "m.onnx")
    loaded = onnx.OnnxModel(tmp_path / "m.onnx").eval()
    other = ((torch.randint(5, (3, 7)), torch.randn(3, 1, 12, 12)), {})
    assert compare_outputs(loaded, model, [inputs, other], tolerance=onnx.TOLERANCE, what="m.onnx") < 1e-5


def test_an_attempt_translates_only_where_an_operator_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    translated: list[nn.Module] = []
    monkeypatch.setattr(onnx, "_translated", lambda model, program: translated.append(model))
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2)).eval()
    for model in (plain, other):
        onnx.try_onnx(model, ((torch.randn(2, 1, 8, 8),), {}))
    assert translated == [other]
