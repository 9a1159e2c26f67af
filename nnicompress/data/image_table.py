"""Images named by the rows of a table (CSV, JSON), or held by the rows of a data set of `datasets`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from nnicompress.data.image_files import ImageFiles
from nnicompress.data.image_processing import ImageProcessing
from nnicompress.data.labels import check_num_classes, class_number, class_order, label_name
from nnicompress.data.loaders import RoleLoaders
from nnicompress.data.roles import check_batch_size, require
from nnicompress.data.sources import ROLES, Source, check_source
from nnicompress.data.tables import Table
from nnicompress.errors import ConfigError


class EncodedImage(io.BytesIO):
    """The content of an image file that a row holds; its text says which row."""

    def __init__(self, content: bytes, place: str = "") -> None:
        super().__init__(content)
        self.place = place

    def __repr__(self) -> str:
        return self.place

    __str__ = __repr__


class ImageTable(RoleLoaders):
    """One class an image, from the columns `image` and `label`.

    An image is a path, relative to `root` (where that is None: to the folder of the table), or the bytes that a source
    gives. Images are cut, resized and augmented as `imagefolder.ImageFolder` does it. Inputs are
    `[N, in_channels, image_size, image_size]`, targets `[N]`. `class_names` gives the order of the classes; without it,
    they are those of the source, or the labels of the training rows in order.
    """

    def __init__(
        self,
        source: Source,
        num_classes: int,
        image: str = "image",
        label: str = "label",
        class_names: list[str] | None = None,
        root: str | None = None,
        image_size: int = 224,
        batch_size: int = 32,
        resize: int | None = None,
        augment: bool = True,
        drop_last: bool = False,
        num_workers: int = 0,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        check_batch_size(batch_size)
        require(num_workers >= 0, "num_workers", f"{num_workers} is negative")
        self.processing = ImageProcessing(image_size, resize, in_channels, mean, std)
        self.preprocessing, self.input_shape = self.processing.facts(), self.processing.input_shape
        self.batch_size, self.augment, self.drop_last, self.num_workers = batch_size, augment, drop_last, num_workers

        check_source(source)
        tables = source.roles(label)
        given = class_names if class_names is not None else tables["train"].categories.get(label)
        self.class_names = class_order(labels_of(tables["train"], label), given)
        check_num_classes(num_classes, self.class_names, given is not None)
        self.num_classes = num_classes
        base = None if root is None else Path(root).expanduser()
        if base is not None and not base.is_dir():
            raise ConfigError(f"no folder {str(base)!r}", key="data.root")
        self.samples = {role: self._samples(table, image, label, base) for role, table in tables.items()}

    def _samples(
        self, table: Table, image: str, label: str, root: Path | None
    ) -> list[tuple[Path | EncodedImage, int]]:
        numbers = {name: number for number, name in enumerate(self.class_names)}
        folder = root if root is not None else table.folder or Path()
        return [
            (image_of(value, place, folder), class_number(name, numbers, place, "label"))
            for value, place, name in zip(
                table.column(image, "image"), table.places, labels_of(table, label), strict=True
            )
        ]

    def dataset(self, role: str) -> ImageFiles:
        """The images of a role; the train role augments them."""
        return ImageFiles(
            # Pillow opens a file object as it opens a path.
            cast("list[tuple[Path, int]]", self.samples[role]),
            input_shape=self.processing.input_shape,
            resize=self.processing.resize,
            mean=self.processing.mean,
            std=self.processing.std,
            augment=self.augment and role == "train",
        )

    def fingerprint(self) -> str:
        """A hash of labels and images: of a file its path, size and time of change, else the content."""
        digest = hashlib.sha256()
        for role in ROLES:
            for image, label in self.samples[role]:
                if isinstance(image, EncodedImage):
                    content = hashlib.sha256(image.getbuffer()).hexdigest()
                else:
                    status = image.stat()
                    content = f"{image.name}\0{status.st_size}\0{status.st_mtime_ns}"
                digest.update(f"{role}\0{self.class_names[label]}\0{content}\n".encode())
        return digest.hexdigest()


def labels_of(table: Table, column: str) -> list[str]:
    """The names in a column of labels."""
    values = zip(table.column(column, "label"), table.places, strict=True)
    return [label_name(value, place, "label") for value, place in values]


def image_of(value: Any, place: str, folder: Path) -> Path | EncodedImage:
    """What Pillow opens for a row's image: `{"bytes": ..., "path": ...}` of `datasets`, or a path below `folder`.

    Raises:
        ConfigError: it is neither, or there is no such file.
    """
    if isinstance(value, dict) and value.get("bytes") is not None:
        return EncodedImage(value["bytes"], place)
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str):
        text = f"{place}: {type(value).__name__} where the path of an image is needed"
        raise ConfigError(text, key="data.image")
    file = folder / Path(path).expanduser()
    require(file.is_file(), "image", f"{place}: there is no file {str(file)!r}; see data.root")
    return file
