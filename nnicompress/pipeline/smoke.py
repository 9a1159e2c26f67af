"""Two batches of everything, so that a late failure shows in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Sampler

if TYPE_CHECKING:
    from nnicompress.data.roles import Data

NUM_BATCHES = 2


class FewBatches:
    """Data whose loaders end after `num_batches` batches; everything else is the wrapped data's."""

    def __init__(self, data: Data, num_batches: int = NUM_BATCHES) -> None:
        self._data, self._num_batches = data, num_batches
        self.num_classes, self.input_shape = data.num_classes, data.input_shape
        self.preprocessing, self.class_names, self.tokenizer = (
            getattr(data, name, None) for name in ("preprocessing", "class_names", "tokenizer")
        )

    def train_loader(self, seed: int) -> DataLoader[Any]:
        """The first batches of the first epoch, in every epoch."""
        return self._first(self._data.train_loader(seed))

    def validation_loader(self) -> DataLoader[Any]:
        """The first batches of the validation data."""
        return self._first(self._data.validation_loader())

    def test_loader(self) -> DataLoader[Any]:
        """The first batches of the test data."""
        return self._first(self._data.test_loader())

    def fingerprint(self) -> str:
        """The wrapped data's, marked: a smoke run is not a run on the data."""
        return f"first-{self._num_batches}-batches-of-{self._data.fingerprint()}"

    def _first(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        batches = list(islice(loader, self._num_batches))
        # Batches are made already: a loader with batch_size None hands them out as they are.
        return DataLoader(batches, batch_size=None, sampler=_InOrder(len(batches)))  # type: ignore[arg-type]


class _InOrder(Sampler[int]):
    """0, 1, ...; has `set_epoch` like the samplers of the shipped data, and no use for it."""

    def __init__(self, size: int) -> None:
        self._size = size

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._size))
