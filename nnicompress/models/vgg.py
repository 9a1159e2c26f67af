"""VGG-16 (Simonyan and Zisserman 2015); module names and parameters are those of torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BLOCKS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
"""Configuration D: per block, the convolutions' widths in units of the first width (64)."""


class VGG(nn.Module):
    """Blocks of 3x3 convolutions with max-pooling between, then two hidden linear layers.

    A block's pooling is left out where the map is a single pixel already, so that small images work. Input
    `[N, in_channels, image_size, image_size]` (other sizes are pooled to the same feature map), output
    `[N, num_classes]`.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        image_size: int = 224,
        batch_norm: bool = True,
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = in_channels, image_size
        for block in blocks:
            for width in block:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                channels = width
            if side > 1:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(
            nn.Linear(channels * side * side, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of images `[N, in_channels, H, W]`."""
        x = torch.flatten(self.avgpool(self.features(images)), 1)
        logits: Tensor = self.classifier(x)
        return logits


def vgg16(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 64,
    image_size: int = 224,
    batch_norm: bool = True,
    hidden: int = 4096,
    dropout: float = 0.5,
) -> VGG:
    """VGG-16: 138,357,544 parameters by default without batch norm, 138,365,992 with it.

    For CIFAR-sized images take `image_size=32, hidden=512`.
    """
    blocks = tuple(tuple(width * multiple for multiple in block) for block in BLOCKS)
    return VGG(
        blocks,
        num_classes,
        in_channels,
        image_size=image_size,
        batch_norm=batch_norm,
        hidden=hidden,
        dropout=dropout,
    )
