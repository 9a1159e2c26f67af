"""CIFAR-10 (Krizhevsky 2009) from local files in the official binary version.

A file holds records of 3,073 bytes: one label (0 to 9), then 32x32 pixels of the red, the green and the blue plane,
row by row. `data_batch_1.bin` ... `data_batch_5.bin` are for training, `test_batch.bin` for testing. The Python version
of the dataset is a pickle, which runs code when it is read, so it is not read.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnicompress.data.augmentation import random_flip, random_shift
from nnicompress.data.loaders import RoleLoaders
from nnicompress.data.memory import ImagesInMemory
from nnicompress.data.roles import check_batch_size, check_fact, require
from nnicompress.data.splits import stratified_holdout
from nnicompress.errors import ConfigError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
RECORD = 1 + 3 * 32 * 32
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of the training pixels scaled to [0, 1]."""


class CIFAR10(RoleLoaders):
    """50,000 training images, of which a stratified `validation_fraction` is held out, and 10,000 test images.

    `root` is the folder of the `.bin` files or the one above it. Training images are moved by up to 4 pixels and
    mirrored (He et al. 2016) unless `augment` is false. Inputs are `[N, 3, 32, 32]`. Files are opened at first use;
    the constructor checks that they are there and of a possible size.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        validation_fraction: float = 0.1,
        augment: bool = True,
        drop_last: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
    ) -> None:
        check_batch_size(batch_size)
        require(0 < validation_fraction < 1, "validation_fraction", f"{validation_fraction} is not between 0 and 1")
        for key, given, actual in (
            ("num_classes", num_classes, 10),
            ("in_channels", in_channels, 3),
            ("image_size", image_size, 32),
        ):
            check_fact(key, given, actual, "CIFAR-10 has")
        self.batch_size, self.augment, self.drop_last = batch_size, augment, drop_last
        self.validation_fraction = validation_fraction
        self.num_classes, self.input_shape = num_classes, (in_channels, image_size, image_size)
        self.class_names = CLASS_NAMES
        self.preprocessing = {"pixels": "8-bit RGB, 0 to 255", "divide_by": 255.0, "mean": list(MEAN), "std": list(STD)}
        self.folder = find_folder(Path(root).expanduser())

    def dataset(self, role: str) -> ImagesInMemory:
        """The images of a role; the train role augments them."""
        if role == "test":
            images, labels = self._test
        else:
            images, labels = self._train
            held = stratified_holdout(labels, self.validation_fraction)
            chosen = held if role == "validation" else ~held
            require(bool(chosen.any()), "validation_fraction", f"{self.validation_fraction} leaves no {role} image")
            images, labels = images[chosen], labels[chosen]
        return ImagesInMemory(
            torch.from_numpy(images),
            torch.from_numpy(labels),
            scale=255.0,
            mean=MEAN,
            std=STD,
            augmentation=_augmented if self.augment and role == "train" else None,
        )

    def fingerprint(self) -> str:
        """A hash of the content of all six files."""
        digest = hashlib.sha256()
        for name in TRAIN_FILES + TEST_FILES:
            with (self.folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def _train(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return read_records([self.folder / name for name in TRAIN_FILES])

    @cached_property
    def _test(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return read_records([self.folder / name for name in TEST_FILES])


def find_folder(root: Path) -> Path:
    """The folder under `root` that holds the six binary files; a ConfigError says what is missing or of wrong size."""
    where_from = f"get the binary version from {URL} and unpack it there"
    if not root.is_dir():
        raise ConfigError(f"no folder {str(root)!r}; {where_from}", key="data.root")
    folder = root / "cifar-10-batches-bin"
    if not folder.is_dir():
        folder = root
    missing = [name for name in TRAIN_FILES + TEST_FILES if not (folder / name).is_file()]
    if missing:
        python_version = (root / "cifar-10-batches-py").is_dir() or (root / "data_batch_1").is_file()
        reason = (
            "holds the Python version, a pickle, which is not safe to read"
            if python_version
            else f"has no {', '.join(missing)}"
        )
        raise ConfigError(f"{str(folder)!r} {reason}; {where_from}", key="data.root")
    for name in TRAIN_FILES + TEST_FILES:
        size = (folder / name).stat().st_size
        if size == 0 or size % RECORD:
            raise ConfigError(
                f"{str(folder / name)!r} has {size:,} bytes, not a multiple of {RECORD:,}; "
                f"it is damaged or incomplete: {where_from}",
                key="data.root",
            )
    return folder


def read_records(files: list[Path]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images `[N, 3, 32, 32]` and labels `[N]` of the files, in order."""
    images, labels = [], []
    for file in files:
        records = np.fromfile(file, dtype=np.uint8).reshape(-1, RECORD)
        if records[:, 0].max() > 9:
            raise ConfigError(
                f"{str(file)!r} has a label {records[:, 0].max()}, above 9; it is not a CIFAR-10 file "
                f"(CIFAR-100 has another format): get the binary version from {URL}",
                key="data.root",
            )
        labels.append(records[:, 0].astype(np.int64))
        images.append(records[:, 1:].reshape(-1, 3, 32, 32))
    return np.concatenate(images), np.concatenate(labels)


def _augmented(images: Tensor, draws: Tensor) -> Tensor:
    images, draws = random_shift(images, draws, 4)
    return random_flip(images, draws)[0]
