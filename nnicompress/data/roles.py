"""The contract of a data object, and the loaders that all of them hand out.

Data has three roles: `train`; `validation`, on which every decision is taken; `test`, read once for the report.
A training loader's order and augmentation depend on the seed and the epoch alone: the sampler gives each image a
*draw*, a random integer, and augmentation is a pure function of image and draw. So the number of workers, an earlier
iteration of another loader and the place where a training was resumed change nothing.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nnicompress.errors import ConfigError

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs `[N, C, H, W]` (float32, normalised) and targets `[N]` (int64)."""

Loader: TypeAlias = "DataLoader[Batch]"

Key: TypeAlias = "int | tuple[int, int]"
"""An index, or an index with the draw that augments it."""

MAX_DRAW = 2**62


@runtime_checkable
class Data(Protocol):
    """What the `data` of a recipe is; a user's own class needs these members and no registration.

    Three more are optional, and written into `model/` for whoever serves it: `preprocessing`, a mapping of plain values
    (`mean`, `std`, `divide_by` ...); `class_names`, a text for each class; `tokenizer`, which has `save_pretrained`.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    """Shape of one input, without the batch dimension."""

    def train_loader(self, seed: int) -> Loader:
        """Batches of the train role; equal seeds give equal batches, epoch by epoch."""

    def validation_loader(self) -> Loader:
        """Batches of the validation role, in a fixed order, without augmentation."""

    def test_loader(self) -> Loader:
        """Batches of the test role, in a fixed order, without augmentation."""

    def fingerprint(self) -> str:
        """A hash that changes when the data do."""


class SeededSampler(Sampler["tuple[int, int]"]):
    """A fresh permutation and fresh draws for each epoch, as a function of `seed` and `epoch` alone.

    Each `iter()` serves `epoch` and moves on to the next; `set_epoch` chooses the epoch that the next `iter()`
    serves (Lightning and Accelerate call it, and so does a resumed training).
    """

    first_epoch = 0
    """Added to what `set_epoch` is told: engines count each training's epochs from 0, and this one isn't the first."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The next `iter()` serves this epoch, counted from 0."""
        self.epoch = self.first_epoch + epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        digest = hashlib.sha256(f"{self.seed}/{self.epoch}".encode()).digest()
        self.epoch += 1
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % MAX_DRAW)
        order = torch.randperm(self.size, generator=generator)
        draws = torch.randint(MAX_DRAW, (self.size,), generator=generator)
        return iter(zip(order.tolist(), draws.tolist(), strict=True))


def unpack_keys(keys: list[Key], *, augment: bool) -> tuple[list[int], list[int] | None]:
    """Indices, and draws or None where nothing is to be augmented.

    Bare indices come from a sampler that is not ours (a distributed one, a Trainer's): they draw from torch's
    global generator, which torch seeds in every worker.
    """
    indices = [key if isinstance(key, int) else key[0] for key in keys]
    if not augment:
        return indices, None
    return indices, [int(torch.randint(MAX_DRAW, ())) if isinstance(key, int) else key[1] for key in keys]


def already_a_batch(batch: Any) -> Batch:
    """The collate function of datasets that answer `__getitems__` with a whole batch."""
    inputs, targets = batch
    return inputs, targets


def seed_worker(worker: int) -> None:
    """Seed Python's and NumPy's generators of a loader's worker from torch's, which differs by worker and epoch."""
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)


def make_loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    seed: int | None = None,
    drop_last: bool = False,
    num_workers: int = 0,
) -> Loader:
    """A loader over a dataset whose `__getitems__` returns a batch.

    With a seed: shuffled, by a `SeededSampler` (at `loader.sampler`). Without: in order. `drop_last` drops a last
    batch that is not full. The loader has a generator of its own, so iterating it leaves torch's global one alone.
    """
    size = len(dataset)  # type: ignore[arg-type]
    if drop_last and size < batch_size:
        raise ConfigError(
            f"{batch_size} is more than the {size} training images, and drop_last leaves no batch; take a smaller one",
            key="data.batch_size",
        )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=None if seed is None else SeededSampler(size, seed),
        drop_last=drop_last,
        num_workers=num_workers,
        collate_fn=already_a_batch,
        worker_init_fn=seed_worker,
        generator=torch.Generator().manual_seed(0 if seed is None else seed % 2**63),
    )


def require(ok: bool, key: str, message: str) -> None:
    """Raise a ConfigError about `data.<key>` unless `ok`."""
    if not ok:
        raise ConfigError(message, key=f"data.{key}")


def check_batch_size(batch_size: int) -> None:
    """Raise a ConfigError unless `batch_size` is a positive integer."""
    require(batch_size >= 1, "batch_size", f"{batch_size} is not a positive number of images")


def check_fact(key: str, given: int, actual: int, what: str) -> None:
    """Raise a ConfigError where a recipe states a number that the data contradict."""
    require(given == actual, key, f"{given} is given, but {what} {actual}; write {key}: {actual}")
