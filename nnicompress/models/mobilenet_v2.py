"""MobileNetV2 (Sandler et al. 2018); module names and parameters are those of torchvision."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Table 2 of the paper: expansion, channels, number of blocks, stride of the first block."""


def round_to_eight(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and never below 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def conv_bn_relu(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """1x1 expand, 3x3 depthwise, linear 1x1 project; a shortcut where the shape stays."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn_relu(channels_in, inner, 1))
        layers.append(conv_bn_relu(inner, inner, 3, stride, groups=inner))
        layers.append(nn.Conv2d(inner, channels_out, 1, bias=False))
        layers.append(nn.BatchNorm2d(channels_out))
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """A map `[N, C, H, W]` to one with the block's channels and stride."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Inverted residual blocks after `stages`; input `[N, in_channels, H, W]`, output `[N, num_classes]`.

    `small_images` keeps the resolution in the stem and in the second stage (total stride 8 instead of 32).
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int, int, int]],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        width_mult: float = 1.0,
        small_images: bool = False,
        dropout: float = 0.2,
        stem: int = 32,
        head: int = 1280,
    ) -> None:
        super().__init__()
        channels = round_to_eight(stem * width_mult)
        features: list[nn.Module] = [conv_bn_relu(in_channels, channels, 3, stride=1 if small_images else 2)]
        for index, (expansion, planes, count, stride) in enumerate(stages):
            wide = round_to_eight(planes * width_mult)
            for position in range(count):
                first = 1 if small_images and index == 1 else stride
                features.append(InvertedResidual(channels, wide, first if position == 0 else 1, expansion))
                channels = wide
        last = round_to_eight(head * max(1.0, width_mult))
        features.append(conv_bn_relu(channels, last, 1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of images `[N, in_channels, H, W]`."""
        logits: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return logits


def mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    width_mult: float = 1.0,
    small_images: bool = False,
    dropout: float = 0.2,
) -> MobileNetV2:
    """MobileNetV2 (3,504,872 parameters by default)."""
    return MobileNetV2(
        STAGES, num_classes, in_channels, width_mult=width_mult, small_images=small_images, dropout=dropout
    )
