"""Tiny models, each with one trait that makes a channel group hard to find."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TwoInputs(nn.Module):
    """An image branch and a vector branch, joined by `cat` or by `add`."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.join = join
        self.image = nn.Sequential(
            nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 14, 3, padding=1), nn.ReLU()
        )
        self.vector = nn.Sequential(nn.Linear(5, 18), nn.ReLU(), nn.Linear(18, 14), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(28 if join == "cat" else 14, 12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        seen = self.image(image).mean((2, 3))
        read = self.vector(vector)
        return self.head(torch.cat([seen, read], dim=1) if self.join == "cat" else seen + read)


class DictOutput(nn.Module):
    """A trunk with a convolutional and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()
        )
        self.boxes = nn.Sequential(nn.Conv2d(16, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 4, 1))
        self.classes = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images)
        pooled = features.mean((2, 3))
        return {"boxes": self.boxes(features), "logits": self.classes(pooled)}


class KeywordArguments(nn.Module):
    """Takes keyword-only arguments, one a tensor and one a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1)
        self.condition = nn.Linear(6, 12)
        self.conv2 = nn.Conv2d(12, 10, 3, padding=1)
        self.fc = nn.Linear(10, 4)

    def forward(self, images: Tensor, *, condition: Tensor, gain: float = 1.0) -> Tensor:
        x = F.relu(self.conv1(images)) * self.condition(condition)[:, :, None, None] * gain
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """A gate per channel from the global mean (Hu et al. 2018), on a residual block."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.squeeze = nn.Conv2d(channels, reduced, 1)
        self.excite = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(out, 1)))))
        return F.silu(x + out * gate)


class Coincidence(nn.Module):
    """Hidden width, image size and batch size are all 8, and attributes hold some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 8
        self.image_size = 8
        self.num_steps = 8
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, stride=4, padding=1)
        self.fc1 = nn.Linear(32, 8)
        self.fc2 = nn.Linear(8, 8)

    def forward(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        x = F.relu(self.conv1(images)).view(batch, self.hidden, height * width)
        x = x.view(batch, self.hidden, self.image_size, self.image_size)
        x = F.relu(self.conv2(x)) / self.num_steps
        x = F.relu(self.conv3(x)).view(batch, -1)
        return self.fc2(F.relu(self.fc1(x)))


class PaddedSliced(nn.Module):
    """Spatial padding, a slice of half the channels, an uneven split whose parts go different ways, and a cat."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.left = nn.Conv2d(8, 12, 3, padding=1)
        self.a = nn.Conv2d(4, 6, 1)
        self.b = nn.Conv2d(8, 6, 3, padding=1)
        self.fc = nn.Linear(8 + 6, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv1(F.pad(images, (1, 1, 1, 1), mode="reflect")))
        half = x.shape[1] // 2
        first, second = x[:, :half], x[:, half:]
        small, large = torch.split(F.relu(self.left(first)), [4, 8], dim=1)
        mixed = F.relu(self.a(small) + self.b(F.pad(large, (1, 1, 1, 1))[:, :, 1:-1, 1:-1]))
        return self.fc(torch.cat([second, mixed], dim=1).amax((2, 3)))


class PadShortcut(nn.Module):
    """The parameter-free shortcut of He et al. 2016 (option A): every second pixel, zero channels padded on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv1(images))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(self.conv3(F.relu(self.conv2(x))) + shortcut)
        return self.fc(x.mean((2, 3)))


class LayerScale(nn.Module):
    """Plain parameters on channels: a scale `[C]` on linear features and a scale `[C, 1, 1]` on maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 12, 3, padding=1)
        self.gamma = nn.Parameter(torch.ones(12, 1, 1))
        self.fc1 = nn.Linear(12, 18)
        self.scale = nn.Parameter(torch.ones(18))
        self.shift = nn.Parameter(torch.zeros(18))
        self.fc2 = nn.Linear(18, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv1(images))
        x = x + self.conv2(x) * self.gamma
        x = F.relu(self.fc1(x.mean((2, 3))))
        return self.fc2(x * self.scale + self.shift)


class SharedModule(nn.Module):
    """One convolution applied three times: its input and output widths are the same width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.shared = nn.Conv2d(12, 12, 3, padding=1)
        self.alias = self.shared
        self.fc = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.stem(images))
        for _ in range(2):
            x = F.relu(self.shared(x))
        return self.fc(self.alias(x).mean((2, 3)))


class TiedWeights(nn.Module):
    """An embedding whose table is also the output layer's weight, around a two-layer network."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.up = nn.Linear(12, 24)
        self.down = nn.Linear(24, 12)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(x + self.down(F.gelu(self.up(x))))
