"""Residual networks (He et al. 2016) and their grouped form ResNeXt (Xie et al. 2017).

Module names and parameters are those of torchvision, so its checkpoints load; `resnet20` is the CIFAR network of
section 4.2 of the paper, with projection (1x1 convolution) shortcuts where the shape changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def conv3x3(channels_in: int, channels_out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A padded 3x3 convolution without bias."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A pointwise convolution without bias."""
    return nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self, channels_in: int, planes: int, stride: int, downsample: nn.Module | None, groups: int, group_width: int
    ) -> None:
        super().__init__()
        if groups != 1:
            raise ValueError("grouped convolutions need bottleneck blocks")
        self.conv1 = conv3x3(channels_in, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """A map `[N, C, H, W]` to one with the block's channels and stride."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        activated: Tensor = self.relu(out + shortcut)
        return activated


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3 (grouped in ResNeXt, with the stride), 1x1 expand by 4, and a shortcut."""

    expansion = 4

    def __init__(
        self, channels_in: int, planes: int, stride: int, downsample: nn.Module | None, groups: int, group_width: int
    ) -> None:
        super().__init__()
        inner = planes * group_width // 64 * groups
        self.conv1 = conv1x1(channels_in, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, planes * self.expansion)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """A map `[N, C, H, W]` to one with the block's channels and stride."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        activated: Tensor = self.relu(out + shortcut)
        return activated


class ResNet(nn.Module):
    """`len(num_blocks)` stages of residual blocks; stage i has `width * 2**i` planes and halves the map (i > 0).

    `small_images` chooses the 3x3 stem without pooling that CIFAR-sized images need, instead of the 7x7 stem of
    stride 2 with max-pooling. Input `[N, in_channels, H, W]`, output `[N, num_classes]`.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: Sequence[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        width: int = 64,
        small_images: bool = False,
        groups: int = 1,
        group_width: int = 64,
    ) -> None:
        super().__init__()
        if small_images:
            self.conv1 = conv3x3(in_channels, width)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        self.stages: list[str] = []
        for index, count in enumerate(num_blocks):
            planes = width * 2**index
            blocks: list[nn.Module] = []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                downsample: nn.Module | None = None
                if stride != 1 or channels != planes * block.expansion:
                    downsample = nn.Sequential(
                        conv1x1(channels, planes * block.expansion, stride), nn.BatchNorm2d(planes * block.expansion)
                    )
                blocks.append(block(channels, planes, stride, downsample, groups, group_width))
                channels = planes * block.expansion
            self.stages.append(f"layer{index + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of images `[N, in_channels, H, W]`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def resnet20(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNet:
    """The 20-layer CIFAR network: three stages of three basic blocks (272,474 parameters for 10 classes in RGB)."""
    return ResNet(BasicBlock, (3, 3, 3), num_classes, in_channels, width=width, small_images=True)


def resnet18(num_classes: int = 1000, in_channels: int = 3, width: int = 64, small_images: bool = False) -> ResNet:
    """ResNet-18 (11,689,512 parameters by default)."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, width=width, small_images=small_images)


def resnet50(num_classes: int = 1000, in_channels: int = 3, width: int = 64, small_images: bool = False) -> ResNet:
    """ResNet-50 with the stride in the 3x3 convolution (25,557,032 parameters by default)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, width=width, small_images=small_images)
