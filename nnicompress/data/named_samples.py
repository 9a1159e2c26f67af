"""Datasets whose samples are mappings, as a Trainer of transformers takes them, as the data of a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from nnicompress.data.roles import Key, Loader, check_batch_size, make_loader, unpack_keys
from nnicompress.errors import ConfigError, did_you_mean

HASHED = 1000
"""Samples of each role that the fingerprint looks at."""


class NamedSamples:
    """Three datasets whose samples are mappings of tensors, numbers or lists, one entry of which is the label.

    A batch is a pair `(inputs, labels)`, inputs being a mapping, for models that take their inputs by name. Without a
    test dataset, the validation data serve for both.
    """

    def __init__(
        self,
        train: Any,
        validation: Any,
        test: Any = None,
        batch_size: int = 32,
        label: str = "labels",
        collator: Callable[[list[Any]], Mapping[str, Any]] = default_collate,
        num_classes: int = 0,
    ) -> None:
        """Take datasets with `__len__` and `__getitem__`; `collator` makes a mapping of tensors of some samples."""
        check_batch_size(batch_size)
        self.datasets = {"train": train, "validation": validation, "test": validation if test is None else test}
        for role, dataset in self.datasets.items():
            if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
                raise ConfigError(
                    f"{type(dataset).__name__} is no dataset: it needs __len__ and __getitem__", key=f"data.{role}"
                )
        self.batch_size, self.label, self.num_classes = batch_size, label, num_classes
        self._collate = _Pairs(label, collator)
        inputs, _ = self._collate([validation[0]])
        first = next((value for value in inputs.values() if isinstance(value, Tensor)), torch.empty(1, 0))
        self.input_shape: tuple[int, ...] = tuple(first.shape[1:])

    def train_loader(self, seed: int) -> Loader:
        """Shuffled by `seed` and epoch."""
        return self._loader("train", seed)

    def validation_loader(self) -> Loader:
        """In order."""
        return self._loader("validation", None)

    def test_loader(self) -> Loader:
        """In order."""
        return self._loader("test", None)

    def fingerprint(self) -> str:
        """A hash of the datasets' sizes and of the first 1,000 samples of each."""
        digest = hashlib.sha256()
        for dataset in self.datasets.values():
            digest.update(str(len(dataset)).encode())
            for sample in islice((dataset[index] for index in range(len(dataset))), HASHED):
                for name in sorted(sample):
                    value = torch.as_tensor(sample[name])
                    digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                    digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _loader(self, role: str, seed: int | None) -> Loader:
        return make_loader(_Batches(self.datasets[role], self._collate), self.batch_size, seed=seed)


class _Batches(Dataset[Any]):
    """A dataset that gives whole batches, of keys that may carry a draw (`roles.Key`)."""

    def __init__(self, dataset: Any, collate: _Pairs) -> None:
        self._dataset, self._collate = dataset, collate

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, keys: list[Key]) -> Any:
        """The batch of these keys, `(inputs, labels)`; DataLoader prefers this method to `__getitem__`."""
        indices, _ = unpack_keys(keys, augment=False)
        return self._collate([self._dataset[index] for index in indices])

    def __getitem__(self, key: Key) -> Any:
        inputs, labels = self.__getitems__([key])
        return {name: value[0] for name, value in inputs.items()}, labels[0]


class _Pairs:
    """A list of samples to `(inputs, labels)`."""

    def __init__(self, label: str, collator: Callable[[list[Any]], Mapping[str, Any]]) -> None:
        self._label, self._collator = label, collator

    def __call__(self, samples: list[Any]) -> tuple[dict[str, Any], Any]:
        batch = dict(self._collator(samples))
        if self._label not in batch:
            raise ConfigError(f"a sample has no {self._label!r}{did_you_mean(self._label, batch)}", key="data.label")
        labels = batch.pop(self._label)
        return batch, labels
