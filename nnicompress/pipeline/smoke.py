"""Two batches of everything, so that a late failure shows in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

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
        if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            # Batches are made already: a loader with batch_size None hands them out as they are.
            made = _FirstSamples(list(islice(loader, self._num_batches)))
            return DataLoader(made, batch_size=None, sampler=_InOrder(len(made)))
        batches = list(islice(loader.batch_sampler, self._num_batches))
        first = _FirstSamples(loader.dataset, [key for batch in batches for key in batch])
        size = max((len(batch) for batch in batches), default=1)
        return DataLoader(first, batch_size=size, sampler=_InOrder(len(first)), collate_fn=loader.collate_fn)


class _FirstSamples(Dataset[Any]):
    """The samples of a data set at `keys`, which a sampler gave; engines draw from it as from the whole."""

    def __init__(self, samples: Any, keys: Sequence[Any] | None = None) -> None:
        self._samples, self._keys = samples, range(len(samples)) if keys is None else keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Any:
        return self._samples[self._keys[index]]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        keys = [self._keys[index] for index in indices]
        whole = getattr(self._samples, "__getitems__", None)
        return [self._samples[key] for key in keys] if whole is None else whole(keys)


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
