"""`model.pt2`: any batch size, torch alone, and failures in words."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import JobError
from nnicompress.export.comparison import compare_outputs
from nnicompress.export.program import TOLERANCE, ProgramModel, export_program
from nnicompress.models.resnet import resnet20

ALONE = """
import sys
import torch
program = torch.export.load(sys.argv[1]).module()
x, y = torch.load(sys.argv[2], weights_only=True)
assert "nnicompress" not in sys.modules
print(float((program(x) - y).abs().max()))
try:
    import nnicompress
except ModuleNotFoundError:
    print("absent")
"""


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor, *, scale: float, y: Tensor) -> dict[str, Tensor]:
        return {"sum": self.a(x) * scale + self.b(y), "mean": self.a(x).mean(1)}


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


def test_the_file_runs_at_other_batch_sizes_without_this_library(tmp_path: Path) -> None:
    model = resnet20(num_classes=10, in_channels=1, width=4).eval()
    export_program(model, ((torch.randn(2, 1, 8, 8),), {}), tmp_path / "model.pt2")
    x = torch.randn(7, 1, 8, 8)
    with torch.no_grad():
        torch.save((x, model(x)), tmp_path / "sample.pt")
    # -I: neither the current directory nor PYTHONPATH is on the path.
    command = [sys.executable, "-I", "-c", ALONE, str(tmp_path / "model.pt2"), str(tmp_path / "sample.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    difference, *installed = done.stdout.split()
    assert float(difference) < 1e-5
    # Where the library itself is installed into the environment, that it wasn't imported is all that can be seen.
    assert installed in (["absent"], [])


def test_keyword_inputs_and_dict_outputs(tmp_path: Path) -> None:
    model = TwoInputs().eval()
    export_program(model, ((torch.randn(2, 3),), {"scale": 2.0, "y": torch.randn(2, 5)}), tmp_path / "m.pt2")
    loaded = ProgramModel(tmp_path / "m.pt2").eval()
    batches = [((torch.randn(n, 3),), {"scale": 2.0, "y": torch.randn(n, 5)}) for n in (1, 6)]
    assert compare_outputs(loaded, model, batches, tolerance=TOLERANCE, what="m.pt2") < 1e-6
    assert set(loaded(*batches[0][0], **batches[0][1])) == {"sum", "mean"}


def test_a_forward_that_fixes_its_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        JobError, match="FixedBatch can't be exported by torch.export .*: its forward works for one batch"
    ):
        export_program(FixedBatch(), ((torch.randn(2, 6),), {}), tmp_path / "m.pt2")
    assert not (tmp_path / "m.pt2").exists()


def test_other_outputs_are_noticed(tmp_path: Path) -> None:
    model, other = nn.Linear(3, 3), nn.Linear(3, 3)
    batches = [((torch.randn(4, 3),), {})]
    with pytest.raises(JobError, match=r"x differs from the model by"):
        compare_outputs(other, model, batches, tolerance=1e-4, what="x")
    with pytest.raises(JobError, match=r"x returns shapes \[\(4, 2\)\], the model \[\(4, 3\)\]"):
        compare_outputs(nn.Linear(3, 2), model, batches, tolerance=1e-4, what="x")
    nn.init.constant_(other.bias, float("nan"))
    with pytest.raises(JobError, match="differs from the model by nan"):
        compare_outputs(other, model, batches, tolerance=1e-4, what="x")


def test_the_file_says_nothing_of_the_folders_and_the_code_it_was_made_from(tmp_path: Path) -> None:
    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * self[0](x)

    export_program(Twice(nn.Linear(3, 4)).eval(), ((torch.randn(2, 3),), {}), tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        written = b"".join(archive.read(name) for name in archive.namelist())
    assert Path(__file__).name.encode() not in written and b"self[0](x)" not in written
