"""The handwritten digits that ship with the package: 1,797 real images of 8x8 pixels in 10 classes.

They are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, doi:10.24432/C50P49, CC BY 4.0), as scikit-learn distributes it (BSD-3-Clause). `digits.npz` holds
`images` `[1797, 8, 8]` with values 0 to 16 and `labels` `[1797]`, both uint8, written once from
`sklearn.datasets.load_digits()` with no change of values or order.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnicompress.data.augmentation import random_shift
from nnicompress.data.loaders import RoleLoaders
from nnicompress.data.memory import ImagesInMemory
from nnicompress.data.roles import check_batch_size, check_fact, require
from nnicompress.data.splits import stratified_folds, stratified_holdout

FILE = Path(__file__).with_name("digits.npz")
MEAN, STD = 0.3, 0.38
"""Of the pixels scaled to [0, 1], rounded."""


class Digits(RoleLoaders):
    """`num_folds` stratified folds: `fold` is the test role, `validation_fraction` of the rest is validation.

    The folds' test roles together are all 1,797 images, each once. Training images move by up to `shift` pixels
    (0: no augmentation). Inputs are `[N, 1, 8, 8]`.
    """

    def __init__(
        self,
        batch_size: int = 64,
        fold: int = 0,
        num_folds: int = 5,
        validation_fraction: float = 0.125,
        shift: int = 1,
        drop_last: bool = False,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 8,
    ) -> None:
        check_batch_size(batch_size)
        require(2 <= num_folds <= 100, "num_folds", f"{num_folds} is outside 2 ... 100")
        require(0 <= fold < num_folds, "fold", f"{fold} is outside 0 ... {num_folds - 1} (num_folds is {num_folds})")
        require(
            0.01 <= validation_fraction <= 0.9,
            "validation_fraction",
            f"{validation_fraction} is outside 0.01 ... 0.9; every decision of a run is taken on these images",
        )
        require(0 <= shift <= 7, "shift", f"{shift} is outside 0 ... 7 (the images have 8 pixels a side)")
        for key, given, actual in (
            ("num_classes", num_classes, 10),
            ("in_channels", in_channels, 1),
            ("image_size", image_size, 8),
        ):
            check_fact(key, given, actual, "the digits have")
        self.batch_size, self.shift, self.drop_last = batch_size, shift, drop_last
        self.num_classes, self.input_shape = num_classes, (in_channels, image_size, image_size)
        self.class_names = tuple(map(str, range(10)))
        self.preprocessing = {"pixels": "8-bit grey, 0 to 16", "divide_by": 16.0, "mean": [MEAN], "std": [STD]}
        with np.load(FILE, allow_pickle=False) as file:
            # Reshaped, not indexed with None: torch would read the new dimension's stride as a channels-last layout,
            # with which oneDNN corrupts memory in convolutions of fewer than 8 channels (torch 2.13).
            self.images: NDArray[np.uint8] = file["images"].reshape(-1, 1, 8, 8)
            self.labels: NDArray[np.int64] = file["labels"].astype(np.int64)
        tested = stratified_folds(self.labels, num_folds) == fold
        rest = np.flatnonzero(~tested)
        validated = stratified_holdout(self.labels[rest], validation_fraction)
        self.indices = {
            "train": rest[~validated],
            "validation": rest[validated],
            "test": np.flatnonzero(tested),
        }
        """Role -> indices into `images` and `labels`, ascending."""

    def dataset(self, role: str) -> ImagesInMemory:
        """The images of a role; the train role shifts them."""
        chosen = self.indices[role]
        augmentation = functools.partial(_shifted, pixels=self.shift) if role == "train" and self.shift else None
        return ImagesInMemory(
            torch.from_numpy(self.images[chosen]),
            torch.from_numpy(self.labels[chosen]),
            scale=16.0,
            mean=(MEAN,),
            std=(STD,),
            augmentation=augmentation,
        )

    def fingerprint(self) -> str:
        """A hash of all pixels and labels."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()


def _shifted(images: Tensor, draws: Tensor, *, pixels: int) -> Tensor:
    return random_shift(images, draws, pixels)[0]
