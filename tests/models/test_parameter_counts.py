"""Parameter counts against the published ones, and against sums written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnicompress.models.mlp import mlp
from nnicompress.models.mobilenet_v2 import mobilenet_v2
from nnicompress.models.resnet import Bottleneck, ResNet, resnet18, resnet20, resnet50
from nnicompress.models.vgg import vgg16
from tests.models.architectures import ConvNeXt, DenseNet, ShuffleNetV2, UNet


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "published"),
    [
        pytest.param(resnet18, 11_689_512, id="resnet18"),
        pytest.param(resnet50, 25_557_032, id="resnet50"),
        pytest.param(
            lambda: ResNet(Bottleneck, (3, 4, 6, 3), groups=32, group_width=4), 25_028_904, id="resnext50_32x4d"
        ),
        pytest.param(mobilenet_v2, 3_504_872, id="mobilenet_v2"),
        pytest.param(lambda: vgg16(batch_norm=False), 138_357_544, id="vgg16"),
        pytest.param(vgg16, 138_365_992, id="vgg16_bn"),
        pytest.param(lambda: DenseNet((6, 12, 24, 16), 32, 64, 1000), 7_978_856, id="densenet121"),
        pytest.param(
            lambda: ShuffleNetV2((4, 8, 4), (24, 116, 232, 464, 1024), 1000), 2_278_604, id="shufflenet_v2_x1_0"
        ),
        pytest.param(lambda: ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768), 1000), 28_589_128, id="convnext_tiny"),
        pytest.param(lambda: UNet((64, 128, 256, 512, 1024), 1), 31_037_633, id="unet"),
    ],
)
def test_published_counts(build, published):
    with torch.device("meta"):
        assert count(build()) == published


@pytest.mark.parametrize(("width", "channels"), [(16, 3), (16, 1), (5, 1)])
def test_resnet20_by_hand(width, channels):
    w = width
    stem = channels * w * 9 + 2 * w
    total = stem + 3 * (2 * w * w * 9 + 4 * w)
    for c in (2 * w, 4 * w):
        total += (c // 2) * c * 9 + c * c * 9 + 4 * c  # the first block, half as wide at its input
        total += (c // 2) * c + 2 * c  # its shortcut
        total += 2 * (2 * c * c * 9 + 4 * c)
    total += 4 * w * 10 + 10
    assert count(resnet20(10, channels, width=w)) == total
    if (width, channels) == (16, 3):
        assert total == 272_474


def test_mlp_by_hand():
    assert count(mlp(10, 1, 8, hidden=(32, 16))) == 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10
    with_norm = 64 * 32 + 2 * 32 + 32 * 16 + 2 * 16 + 16 * 10 + 10
    assert count(mlp(10, 1, 8, hidden=(32, 16), batch_norm=True)) == with_norm


def test_small_image_stem_differs_only_in_the_stem():
    with torch.device("meta"):
        assert count(resnet18()) - count(resnet18(small_images=True)) == 64 * 3 * (49 - 9)
        assert count(mobilenet_v2()) == count(mobilenet_v2(small_images=True))
