"""The shipped classifiers: shapes, resolutions, gradients, and that their files stand alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import nnicompress.models
from nnicompress.models.mlp import MLP, mlp
from nnicompress.models.mobilenet_v2 import mobilenet_v2, round_to_eight
from nnicompress.models.resnet import BasicBlock, ResNet, resnet18, resnet20, resnet50
from nnicompress.models.vgg import vgg16

BUILDERS = {
    "resnet20": lambda c, s: resnet20(7, c, width=4),
    "resnet18": lambda c, s: resnet18(7, c, width=4, small_images=True),
    "resnet50": lambda c, s: resnet50(7, c, width=4, small_images=True),
    "mobilenet_v2": lambda c, s: mobilenet_v2(7, c, width_mult=0.25, small_images=True),
    "vgg16": lambda c, s: vgg16(7, c, width=4, image_size=s, hidden=16),
    "mlp": lambda c, s: mlp(7, c, s, hidden=(16,)),
}


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", BUILDERS)
def test_logits_and_a_gradient_for_every_parameter(name, channels, size):
    model = BUILDERS[name](channels, size)
    logits = model(torch.randn(3, channels, size, size))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", BUILDERS)
def test_same_seed_same_weights_and_same_outputs(name):
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        model = BUILDERS[name](1, 8).eval()
        outputs.append(model(torch.linspace(-1, 1, 128).view(2, 1, 8, 8)))
    assert torch.equal(*outputs)
    assert outputs[0].std() > 0


@pytest.mark.parametrize(
    ("model", "small", "sides"),
    [
        (resnet18(10, width=2), False, [16, 8, 4, 2]),
        (resnet18(10, width=2, small_images=True), True, [64, 32, 16, 8]),
    ],
    ids=["imagenet stem", "small images"],
)
def test_resolution_of_the_resnet_stages(model, small, sides):
    seen = []
    for stage in model.stages:
        model.get_submodule(stage).register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    model(torch.randn(2, 3, 64, 64))
    assert seen == sides


def test_mobilenet_v2_total_stride():
    for small, side in ((False, 2), (True, 8)):
        model = mobilenet_v2(10, width_mult=0.25, small_images=small).eval()
        assert model.features(torch.randn(1, 3, 64, 64)).shape[-1] == side
    assert [round_to_eight(c * 0.75) for c in (16, 24, 32, 64, 96)] == [16, 24, 24, 48, 72]


def test_vgg_pools_down_to_one_pixel_and_not_further():
    for size, side in ((8, 1), (32, 1), (64, 2)):
        model = vgg16(10, width=2, image_size=size, hidden=4).eval()
        assert model.features(torch.randn(1, 3, size, size)).shape[-2:] == (side, side)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="grouped convolutions need bottleneck blocks"):
        ResNet(BasicBlock, (1,), groups=2)
    with pytest.raises(ValueError, match="input and an output size"):
        MLP((3,))


@pytest.mark.parametrize("name", ["mlp", "mobilenet_v2", "outputs", "resnet", "vgg"])
def test_a_model_file_imports_torch_and_the_standard_library_alone(name):
    """The file is copied beside an exported model, where this package is not installed."""
    tree = ast.parse((Path(nnicompress.models.__path__[0]) / f"{name}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in imported} <= {"__future__", "collections", "torch", "typing"}
