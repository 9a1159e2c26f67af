"""What can't be exported is refused by `check`, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nnicompress.export import onnx
from tests.checks.test_recipe import BASE, SMALL, checked, here, lines_of

__all__ = ["here"]

MODELS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.head = nn.Linear(8, 10)

    def features(self, x):
        return self.conv(x).relu().mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


class Unboxes(Net):
    def forward(self, box):
        return super().forward(box.x)


class Branches(Net):
    def forward(self, x):
        y = self.features(x)
        if y.sum() > 1e9:
            y = -y
        return self.head(y)


class FixedBatch(Net):
    def forward(self, x):
        return self.head(self.features(x).reshape(int(x.shape[0]) // 1, 8)[: len(x.tolist())])


class Singular(Net):
    def forward(self, x):
        return self.head(self.features(x) + torch.linalg.svdvals(x[:, 0]))
"""

DATA = """
from nnicompress.data.digits import Digits


class Named(Digits):
    def __init__(self):
        super().__init__()
        self.class_names = ("a", "b")


class Box:
    def __init__(self, x):
        self.x = x


class Boxed(Digits):
    def __init__(self):
        super().__init__(batch_size=2)

    def validation_loader(self):
        return [(Box(x), y) for x, y in super().validation_loader()]
"""


@pytest.fixture
def user(here: Path) -> Iterator[Path]:
    (here / "my_models.py").write_text(MODELS)
    (here / "my_data.py").write_text(DATA)
    yield here


def recipe(folder: Path, name: str, *, formats: str = "", data: str = "") -> str:
    lines = [
        f"model: {{_target_: my_models.{name}}}",
        *([f"data: {{_target_: my_data.{data}}}"] if data else []),
        "evaluator: {metric: {num_classes: 10}}" if data else "",
        "stages:",
        "  train: {max_epochs: 1}",
        f"  export: {{{formats}}}",
    ]
    file = folder / "mine.yaml"
    file.write_text("\n".join(lines) + "\n")
    return f"recipe={file}"


def test_a_right_model_passes_in_every_format(user: Path) -> None:
    report = checked(recipe(user, "Net", formats="formats: [pt2, onnx]"))
    assert report.model == "Net"
    assert sorted(path.name for path in user.iterdir() if path.is_file()) == ["mine.yaml", "my_data.py", "my_models.py"]


@pytest.mark.parametrize("name", ["pt2", "onnx"])
def test_a_forward_that_branches_on_values_is_refused(name: str, user: Path) -> None:
    (line,) = lines_of(recipe(user, "Branches", formats=f"formats: [{name}]"))
    assert line.startswith(
        f"stages.export.formats: model.{name} can't be written: Branches can't be exported by torch.export with a "
        "dynamic batch: its forward branches on the values of a tensor ("
    )
    assert "my_models.py" in line and "if y.sum() > 1e9:" in line and "mine.yaml:5" in line


def test_what_onnx_can_t_translate_is_refused_and_fine_for_pt2(user: Path) -> None:
    assert checked(recipe(user, "Singular", formats="formats: [pt2]")).model == "Singular"
    (line,) = lines_of(recipe(user, "Singular", formats="formats: [pt2, onnx]"))
    assert "stages.export.formats: model.onnx can't be written: Singular can't be translated to ONNX: " in line
    assert "_linalg_svd" in line and "leave this format out" in line


def test_a_forward_for_one_batch_size_is_refused(user: Path) -> None:
    (line,) = lines_of(recipe(user, "FixedBatch"))
    assert line.startswith("export.formats: model.pt2 can't be written: FixedBatch can't be exported")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "PACKAGES", ("no_such_package",))
    (line,) = lines_of(BASE, *SMALL, "stages.export.formats=[onnx]")
    assert "stages.export.formats: format 'onnx' needs no_such_package: pip install 'nnicompress[export]'" in line


def test_a_recipe_without_the_stage_is_not_tried(user: Path) -> None:
    (user / "mine.yaml").write_text("model: {_target_: my_models.Branches}\nstages:\n  train: {max_epochs: 1}\n")
    assert checked(f"recipe={user}/mine.yaml").model == "Branches"


def test_wrong_members_of_the_data_are_told(user: Path) -> None:
    (line,) = lines_of(recipe(user, "Net", data="Named"))
    assert line.startswith("data: Named.class_names has 2 names, and num_classes is 10 (")


def test_inputs_that_can_t_be_stored_are_told(user: Path) -> None:
    for formats in ("formats: []", "formats: [pt2, onnx]"):
        (line,) = lines_of(recipe(user, "Unboxes", data="Boxed", formats=formats))
        assert line.startswith("data: the model's example input holds a Box; tensors and plain values can be stored (")
