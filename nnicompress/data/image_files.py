"""A dataset of image files of any size: decode, cut, resize, normalise."""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nnicompress.data.roles import Batch, Key, unpack_keys
from nnicompress.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
"""Of the part that training sees (Szegedy et al. 2015)."""


class ImageFiles(Dataset[Batch]):
    """Files with class numbers, given out as `[C, H, W]` in float32; a draw chooses the part and the mirroring."""

    def __init__(
        self,
        samples: Sequence[tuple[Path, int]],
        *,
        input_shape: tuple[int, int, int],
        resize: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: bool,
    ) -> None:
        pillow()
        self.samples, self.augment, self.resize = samples, augment, resize
        self.channels, _, self.side = input_shape
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: list[Key]) -> Batch:
        """The batch of these keys; DataLoader prefers this method to `__getitem__`."""
        indices, draws = unpack_keys(keys, augment=self.augment)
        images = [
            self._load(self.samples[index][0], None if draws is None else draws[position])
            for position, index in enumerate(indices)
        ]
        return torch.stack(images), torch.tensor([self.samples[index][1] for index in indices])

    def __getitem__(self, key: Key) -> Batch:
        images, labels = self.__getitems__([key])
        return images[0], labels[0]

    def _load(self, path: Path, draw: int | None) -> Tensor:
        module = pillow()
        try:
            with module.open(path) as file:
                image: Image = file.convert("RGB" if self.channels == 3 else "L")
        except OSError as error:
            raise UserError(f"{str(path)!r} is not an image that Pillow can read: {error}") from error
        if draw is None:
            box = centre_box(image.width, image.height, self.side / self.resize)
            mirrored = False
        else:
            chance = random.Random(draw)
            box = random_box(image.width, image.height, chance)
            mirrored = chance.random() < 0.5
        # Reading the box within the resampling is as exact as cropping first, and never builds the larger image.
        image = image.resize((self.side, self.side), module.Resampling.BILINEAR, box=box)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / 255
        pixels = pixels[None] if self.channels == 1 else pixels.permute(2, 0, 1)
        return ((pixels.flip(2) if mirrored else pixels) - self.mean) / self.std


def centre_box(width: int, height: int, share: float) -> Box:
    """The square in the middle whose side is `share` of the image's short side."""
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, chance: random.Random) -> Box:
    """A part of random area and aspect ratio; after ten misses, the largest centred part of an allowed aspect."""
    for _ in range(10):
        area = width * height * chance.uniform(*AREA)
        aspect = math.exp(chance.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, top = chance.randint(0, width - wide), chance.randint(0, height - high)
            return left, top, left + wide, top + high
    aspect = min(max(width / height, ASPECT[0]), ASPECT[1])
    widest, highest = min(width, height * aspect), min(height, width / aspect)
    margin, above = (width - widest) / 2, (height - highest) / 2
    return margin, above, margin + widest, above + highest


def pillow() -> ModuleType:
    """Pillow's Image module; a UserError where it is not installed."""
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise UserError("reading image files needs Pillow: pip install 'nnicompress[vision]'") from error
