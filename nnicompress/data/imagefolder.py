"""Images in folders, `root/{train,validation,test}/<class>/<file>`, decoded by Pillow (the extra `vision`)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from nnicompress.data.image_files import ImageFiles
from nnicompress.data.loaders import RoleLoaders
from nnicompress.data.roles import check_batch_size, check_fact, require
from nnicompress.data.splits import stratified_holdout
from nnicompress.errors import ConfigError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training pixels scaled to [0, 1]."""

Samples = list[tuple[Path, int]]


class ImageFolder(RoleLoaders):
    """A folder a role and in it a folder a class; classes are numbered in the order of their names.

    Training images: a random part of 8 to 100 % of the area, resized, mirrored half of the time (Szegedy et al.
    2015), unless `augment` is false; other roles, and training without augmentation: the short side resized to
    `resize` (8/7 of `image_size` where not given), the centre cropped. Inputs are
    `[N, in_channels, image_size, image_size]`; `in_channels` 1 converts to grey. The validation folder is called
    `validation` or `val`; with `validation_fraction`, a stratified part of the train folder takes its place.
    """

    def __init__(
        self,
        root: str,
        num_classes: int,
        image_size: int = 224,
        batch_size: int = 32,
        resize: int | None = None,
        validation_fraction: float | None = None,
        train_folder: str = "train",
        validation_folder: str | None = None,
        test_folder: str = "test",
        augment: bool = True,
        drop_last: bool = False,
        num_workers: int = 0,
        in_channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        check_batch_size(batch_size)
        require(image_size >= 1, "image_size", f"{image_size} is not a positive number of pixels")
        self.resize = round(image_size * 8 / 7) if resize is None else resize
        require(self.resize >= image_size, "resize", f"{self.resize} is smaller than image_size ({image_size})")
        require(in_channels in (1, 3), "in_channels", f"{in_channels} is neither 1 (grey) nor 3 (RGB)")
        require(num_workers >= 0, "num_workers", f"{num_workers} is negative")
        self.mean = tuple(mean) if mean is not None else MEAN if in_channels == 3 else (0.5,)
        self.std = tuple(std) if std is not None else STD if in_channels == 3 else (0.25,)
        for key, values in (("mean", self.mean), ("std", self.std)):
            require(len(values) == in_channels, key, f"{len(values)} numbers for {in_channels} channels")
        self.batch_size, self.drop_last, self.num_workers, self.augment = batch_size, drop_last, num_workers, augment
        self.num_classes, self.input_shape = num_classes, (in_channels, image_size, image_size)

        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ConfigError(f"no folder {str(self.root)!r}", key="data.root")
        train = self._folder(train_folder, "train")
        self.classes = class_names(train)
        check_fact("num_classes", num_classes, len(self.classes), f"the number of folders in {str(train)!r} is")
        self.class_names = tuple(self.classes)
        self.preprocessing = {
            "pixels": f"8-bit {'RGB' if in_channels == 3 else 'grey'}, 0 to 255",
            "resize": {"short_side": self.resize, "interpolation": "bilinear"},
            "crop": {"centre": image_size},
            "divide_by": 255.0,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        self.samples = {"train": list_samples(train, self.classes)}
        if validation_fraction is None:
            validation = self._folder(validation_folder, "validation", "val")
            self.samples["validation"] = list_samples(validation, self.classes)
        else:
            require(
                validation_folder is None,
                "validation_folder",
                "given together with validation_fraction; leave one of them out",
            )
            self._hold_out(validation_fraction)
        self.samples["test"] = list_samples(self._folder(test_folder, "test"), self.classes)

    def _folder(self, name: str | None, *usual: str) -> Path:
        """The folder of role `usual[0]`: `name` where given, else the one that exists of the usual names."""
        candidates = [name] if name is not None else list(usual)
        found = [self.root / candidate for candidate in candidates if (self.root / candidate).is_dir()]
        role = usual[0]
        if not found:
            there = sorted(path.name for path in self.root.iterdir() if path.is_dir()) or ["no folder"]
            raise ConfigError(
                f"no folder for the {role} images: {' or '.join(candidates)} is not in {str(self.root)!r} "
                f"(there: {', '.join(there)}); create it, or name another by data.{role}_folder"
                + (", or set data.validation_fraction" if role == "validation" else ""),
                key="data.root",
            )
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise ConfigError(f"{names} both exist; choose by data.{role}_folder", key="data.root")
        return found[0]

    def _hold_out(self, fraction: float) -> None:
        """Move a stratified part of the train role to the validation role."""
        require(0 < fraction < 1, "validation_fraction", f"{fraction} is not between 0 and 1")
        samples = self.samples["train"]
        held = stratified_holdout(np.array([label for _, label in samples], dtype=np.int64), fraction)
        for role, chosen in (("validation", held), ("train", ~held)):
            self.samples[role] = [samples[index] for index in np.flatnonzero(chosen)]
            require(bool(self.samples[role]), "validation_fraction", f"{fraction} leaves no {role} image")

    def dataset(self, role: str) -> ImageFiles:
        """The images of a role; the train role augments them."""
        return ImageFiles(
            self.samples[role],
            input_shape=self.input_shape,
            resize=self.resize,
            mean=self.mean,
            std=self.std,
            augment=self.augment and role == "train",
        )

    def fingerprint(self) -> str:
        """A hash of each file's path below `root`, size and time of change: contents are not read."""
        digest = hashlib.sha256()
        for role in sorted(self.samples):
            for path, label in self.samples[role]:
                status = path.stat()
                name = path.relative_to(self.root).as_posix()
                digest.update(f"{role}\0{name}\0{label}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def class_names(folder: Path) -> list[str]:
    """The sorted names of the folders in `folder`, hidden ones left out; at least one."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise ConfigError(f"{str(folder)!r} holds no class folder", key="data.root")
    return names


def list_samples(folder: Path, classes: list[str]) -> Samples:
    """All image files of a role with their class numbers, sorted; every class must be there and hold an image."""
    here = class_names(folder)
    missing, unknown = sorted(set(classes) - set(here)), sorted(set(here) - set(classes))
    if missing or unknown:
        differences = [f"lacks {', '.join(missing)}"] if missing else []
        differences += [f"has {', '.join(unknown)}, unknown to the train folder"] if unknown else []
        raise ConfigError(f"{str(folder)!r} {' and '.join(differences)}", key="data.root")
    samples: Samples = []
    for label, name in enumerate(classes):
        paths = [
            Path(parent, file)
            for parent, _, files in os.walk(folder / name)
            for file in files
            if Path(file).suffix.lower() in EXTENSIONS and not file.startswith(".")
        ]
        if not paths:
            known = ", ".join(sorted(EXTENSIONS))
            raise ConfigError(f"{str(folder / name)!r} holds no image file ({known})", key="data.root")
        samples += [(path, label) for path in sorted(paths)]
    return samples
