"""Models on the way of a recipe: shipped ones pass; for each check there is a model that stops exactly there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnicompress.doctor.checks import Finding, perform
from nnicompress.doctor.model import MODEL_CHECKS, ModelSubject
from nnicompress.doctor.sample import SampleNet
from nnicompress.models.mlp import mlp
from nnicompress.models.mobilenet_v2 import mobilenet_v2
from nnicompress.models.resnet import resnet20
from nnicompress.trace import Traced

NAMES = [check.name for check in MODEL_CHECKS]
IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def examined(cls: Any, *given: Tensor, **arguments: Any) -> tuple[ModelSubject, dict[str, Finding]]:
    build = Traced(cls, (), arguments)
    subject = ModelSubject(build, {"_target_": f"{cls.__module__}.{cls.__qualname__}", **arguments}, given)
    return subject, {finding.name: finding for finding in perform(MODEL_CHECKS, subject)}


@pytest.mark.parametrize(
    ("cls", "given", "arguments"),
    [
        (SampleNet, (), {}),
        (resnet20, (IMAGES[:1],), {"num_classes": 10, "in_channels": 1}),
        (mlp, (IMAGES,), {"in_channels": 1, "image_size": 8, "num_classes": 10}),
        pytest.param(mobilenet_v2, (torch.randn(2, 3, 32, 32),), {"num_classes": 10}, marks=pytest.mark.slow),
    ],
)
def test_shipped_models_pass_every_check(cls: Any, given: tuple[Tensor, ...], arguments: dict[str, Any]) -> None:
    _, findings = examined(cls, *given, **arguments)
    assert [finding.status for finding in findings.values()] == ["ok"] * len(NAMES), findings


def test_what_it_says_of_a_model_is_counted_right() -> None:
    subject, findings = examined(SampleNet)
    assert findings["input"].found == "2x1x8x8 float32"
    assert findings["forward"].found == "outputs 2x10"
    # Half of 8 shared channels (stem, norm, down, head) and of the 16 inner ones.
    kept = 4 * 9 + 4 + 2 * 4 + 8 * 4 + 8 + 4 * 8 + 10 * 4 * 16 + 10
    assert findings["shrink"].found == f"1,658 to {kept:,} parameters, proved"
    assert findings["channel groups"].found == "2 widths; 100% of the layers' weights lie in them"
    assert [np.asarray(indices).size for indices in subject.removal.values()] == [4, 8]
    assert subject.notes[:3] == (
        "prunable widths (2):",
        "  stem: 8 channel groups, made by stem.weight, down.weight",
        "  up: 16 channel groups, made by up.weight",
    )
    assert any("it is an output of the model" in line for line in subject.notes)


def test_the_channels_with_the_smallest_weights_go() -> None:
    subject, _ = examined(SampleNet)
    weights = subject.model.get_parameter("up.weight").detach().abs().sum((1, 2, 3))
    assert subject.removal["up"].tolist() == sorted(weights.argsort()[:8].tolist())


class Small(nn.Module):
    """The base of the networks below: two convolutions and a linear layer."""

    input_shape: tuple[int, ...] | None = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class NoInput(Small):
    input_shape = None


class WantsThree(Small):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)


class RandomInEval(Small):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, training=True)


class NotFinite(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0


class Branches(Small):
    """On a tensor's value: torch.export can't follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Literal(Small):
    """Sizes as literal numbers: no channel can go."""

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).view(-1, 8, 64)
        return self.second(x.view(-1, 8, 8, 8)).view(-1, 6, 8, 8)


class LiteralInTraining(Small):
    """A branch that evaluation, and so the capture, doesn't take."""

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.second(x + torch.zeros(8, 1, 1) if self.training else x)


class BranchesOnBatch(Small):
    """Runs with any batch size, each in its own way: an exported file has one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2) / 2 if x.shape[0] == 2 else super().forward(x)


class KeepsATensor(Small):
    """A random tensor that is neither parameter nor buffer: no file holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.randn(10)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


@pytest.mark.parametrize(
    ("cls", "check", "status", "told"),
    [
        (NoInput, "input", "missing", "neither `dummy_input` nor `input_shape`, and no --input is given"),
        (WantsThree, "forward", "wrong", "expected input[2, 1, 8, 8] to have 3 channels"),
        (RandomInEval, "forward", "wrong", "two calls with the same input give different outputs"),
        (NotFinite, "forward", "wrong", "outputs are not finite"),
        (Branches, "capture", "wrong", "Branches can't be captured by torch.export"),
        (Literal, "channel groups", "missing", "no width can be pruned: "),
        (LiteralInTraining, "shrink", "wrong", "fails in training mode, in a branch that evaluation does not take"),
        (BranchesOnBatch, "export", "wrong", "with a dynamic batch"),
        (KeepsATensor, "save and load", "wrong", "does not give the stored output"),
    ],
)
def test_each_fault_is_found_by_its_check(cls: Any, check: str, status: str, told: str) -> None:
    _, findings = examined(cls)
    failed = {name: finding for name, finding in findings.items() if finding.status in ("missing", "wrong")}
    assert list(failed) == [check], failed
    assert failed[check].status == status and told in failed[check].found and failed[check].advice
    before = NAMES[: NAMES.index(check)]
    assert all(findings[name].status == "ok" for name in before if name != "export")


def test_the_same_model_with_its_input_is_healthy() -> None:
    _, findings = examined(NoInput, IMAGES)
    assert {finding.status for finding in findings.values()} == {"ok"}


class Named(Small):
    """Two arguments, by name."""

    dummy_input = {"x": torch.randn(3, 1, 8, 8), "scale": torch.ones(3, 1)}

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return super().forward(x) * scale


def test_a_dummy_input_may_be_a_mapping() -> None:
    _, findings = examined(Named)
    assert {finding.status for finding in findings.values()} == {"ok"}, findings
    assert findings["input"].found == "3x1x8x8 float32, 3x1 float32"
