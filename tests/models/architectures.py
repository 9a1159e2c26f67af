"""DenseNet, ShuffleNetV2, U-Net and ConvNeXt as published: small in the zoo, counted at full size by a test."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """BN-ReLU-1x1, BN-ReLU-3x3, appended to the input (Huang et al. 2017, DenseNet-B)."""

    def __init__(self, channels: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(x)))
        new = self.conv2(F.relu(self.norm2(new)))
        return torch.cat([x, new], 1)


class DenseNet(nn.Module):
    """DenseNet-BC: dense blocks with transitions (BN, ReLU, 1x1 to half the width, 2x2 average pooling) between."""

    def __init__(
        self,
        num_layers: Sequence[int],
        growth: int,
        stem: int,
        num_classes: int,
        in_channels: int = 3,
        *,
        bottleneck: int = 4,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module]
        if small_images:
            layers = [nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)]
        else:
            layers = [nn.Conv2d(in_channels, stem, 7, stride=2, padding=3, bias=False)]
            layers += [nn.BatchNorm2d(stem), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)]
        channels = stem
        for index, count in enumerate(num_layers):
            for _ in range(count):
                layers.append(DenseLayer(channels, growth, bottleneck))
                channels += growth
            if index + 1 < len(num_layers):
                layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(images), 1).flatten(1))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` equal parts (Zhang et al. 2018)."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).contiguous().view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """The unit of ShuffleNetV2 (Ma et al. 2018, figure 3 c and d): split, one branch computes, cat, shuffle."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        inner = channels_out // 2
        self.branch1 = nn.Sequential()
        if stride == 2:
            self.branch1 = nn.Sequential(
                nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False),
                nn.BatchNorm2d(channels_in),
                nn.Conv2d(channels_in, inner, 1, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(inplace=True),
            )
        self.branch2 = nn.Sequential(
            nn.Conv2d(channels_in if stride == 2 else inner, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.Conv2d(inner, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            kept, changed = x.chunk(2, dim=1)
            out = torch.cat((kept, self.branch2(changed)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    """Stem, stages of shuffle units, a last 1x1 convolution, global mean, linear."""

    def __init__(
        self,
        repeats: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        stem, *stages, last = widths
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, stem, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        units: list[nn.Module] = []
        channels = stem
        for count, width in zip(repeats, stages, strict=True):
            for position in range(count):
                units.append(ShuffleUnit(channels, width, 2 if position == 0 else 1))
                channels = width
        self.stages = nn.Sequential(*units)
        self.conv5 = nn.Sequential(
            nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU(inplace=True)
        )
        self.fc = nn.Linear(last, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv5(self.stages(self.maxpool(self.conv1(images))))
        return self.fc(x.mean([2, 3]))


def normalization(kind: str, channels: int) -> nn.Module:
    """`batch`, or `group` with 4 groups."""
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(4, channels)


def double_conv(channels_in: int, channels_out: int, norm: str) -> nn.Sequential:
    """Two 3x3 convolutions, each with a norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        normalization(norm, channels_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        normalization(norm, channels_out),
        nn.ReLU(inplace=True),
    )


class UpSample(nn.Module):
    """Twice the size, fewer channels: a transposed convolution, or interpolation and a 3x3 convolution."""

    def __init__(self, channels_in: int, channels_out: int, up: str) -> None:
        super().__init__()
        self.mode = up
        if up == "transposed":
            self.conv: nn.Module = nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2)
        else:
            self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "nearest":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        elif self.mode == "bilinear":
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.conv(x)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with padded convolutions: encoder, decoder, skip connections by cat."""

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        *,
        norm: str = "batch",
        up: str = "transposed",
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        channels = in_channels
        for width in widths:
            self.down.append(double_conv(channels, width, norm))
            channels = width
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.up.append(UpSample(channels, width, up))
            self.merge.append(double_conv(2 * width, width, norm))
            channels = width
        self.head = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm over channels, two linear layers, layer scale, shortcut (Liu et al. 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        out = self.pwconv2(F.gelu(self.pwconv1(out)))
        return x + (self.gamma * out).permute(0, 3, 1, 2)


class ChannelsFirstNorm(nn.LayerNorm):
    """LayerNorm over dimension 1 of `[N, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A patch stem, stages of blocks, and a norm with a strided convolution between stages."""

    def __init__(
        self, num_blocks: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int = 3, patch: int = 4
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], patch, stride=patch)]
        layers.append(ChannelsFirstNorm(widths[0], eps=1e-6))
        for index, (count, width) in enumerate(zip(num_blocks, widths, strict=True)):
            if index:
                layers += [ChannelsFirstNorm(widths[index - 1], eps=1e-6)]
                layers += [nn.Conv2d(widths[index - 1], width, 2, stride=2)]
            layers += [ConvNeXtBlock(width) for _ in range(count)]
        self.features = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.features(images).mean([-2, -1])))
