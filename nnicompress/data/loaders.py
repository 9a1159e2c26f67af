"""The three loaders of a data object, made of the datasets of its roles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch.utils.data import Dataset

from nnicompress.data.roles import Loader, make_loader


class RoleLoaders(ABC):
    """Batches of `dataset(role)`: those of the train role in an order of their own each epoch."""

    batch_size: int
    drop_last: bool
    num_workers: int = 0

    @abstractmethod
    def dataset(self, role: str) -> Dataset[Any]:
        """The samples of a role; augmentation belongs to the train role alone."""

    def train_loader(self, seed: int) -> Loader:
        """Shuffled, and augmented where the dataset does that, by `seed` and epoch."""
        return make_loader(
            self.dataset("train"), self.batch_size, seed=seed, drop_last=self.drop_last, num_workers=self.num_workers
        )

    def validation_loader(self) -> Loader:
        """In order, as they are."""
        return make_loader(self.dataset("validation"), self.batch_size, num_workers=self.num_workers)

    def test_loader(self) -> Loader:
        """In order, as they are."""
        return make_loader(self.dataset("test"), self.batch_size, num_workers=self.num_workers)
