"""A dataset of small images held in memory: a batch is one indexing operation, with no Python per sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nnicompress.data.roles import Batch, Key, unpack_keys

Augmentation = Callable[[Tensor, Tensor], Tensor]
"""Images `[N, C, H, W]` (uint8) and draws `[N]` (int64) to images of the same shape."""


class ImagesInMemory(Dataset[Batch]):
    """Images `[N, C, H, W]` in uint8 and labels `[N]`, given out as `(image / scale - mean) / std` in float32."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        scale: float,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augmentation: Augmentation | None = None,
    ) -> None:
        assert len(images) == len(labels) and images.dtype == torch.uint8
        self.images, self.labels, self.augmentation = images, labels.long(), augmentation
        deviation = torch.tensor(std)[:, None, None]
        self.factor = 1.0 / (scale * deviation)
        self.offset = torch.tensor(mean)[:, None, None] / deviation

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: list[Key]) -> Batch:
        """The batch of these keys; DataLoader prefers this method to `__getitem__`."""
        indices, draws = unpack_keys(keys, augment=self.augmentation is not None)
        picked = torch.tensor(indices)
        images = self.images[picked]
        if self.augmentation is not None:
            images = self.augmentation(images, torch.tensor(draws))
        return images * self.factor - self.offset, self.labels[picked]

    def __getitem__(self, key: Key) -> Batch:
        images, labels = self.__getitems__([key])
        return images[0], labels[0]
