"""Data sets of the package `datasets` (the extra of that name): from its hub by name, or from a local folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from nnicompress.data.sources import check_fractions, fill_roles
from nnicompress.data.tables import Table
from nnicompress.errors import ConfigError, UserError, did_you_mean

SAVED = ("dataset_dict.json", "dataset_info.json")
"""What `save_to_disk` leaves in the folder of several splits, and of one."""


class HubDataset:
    """Splits of a data set: a source of rows for any task.

    `name` is a name on the hub (`stanfordnlp/imdb`), a folder of data files that `datasets` reads, or one that its
    `save_to_disk` wrote. `train`, `validation` and `test` are names of splits (`train[:1000]` where `load_dataset` is
    used); a role that is None is held out of `train`, as in `sources.Files`. `subset` is the data set's configuration
    (`sst2` of `glue`) and `revision` a commit or tag. Numbers of a `ClassLabel` become their names, in that order. No
    code of a data set is ever run.
    """

    def __init__(
        self,
        name: str,
        train: str = "train",
        validation: str | None = None,
        test: str | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        subset: str | None = None,
        revision: str | None = None,
    ) -> None:
        datasets_package()
        check_fractions(validation, test, validation_fraction, test_fraction)
        self.name, self.subset, self.revision = name, subset, revision
        self.splits = {"train": train, "validation": validation, "test": test}
        self.fractions = {"validation": validation_fraction, "test": test_fraction}

    def roles(self, stratify: str | None = None) -> dict[str, Table]:
        """The rows of each role; the data are downloaded or read now."""
        given = {
            role: as_table(self._load(role, split), split) for role, split in self.splits.items() if split is not None
        }
        return fill_roles(given, self.fractions, stratify)

    def _load(self, role: str, split: str) -> Any:
        package, folder = datasets_package(), Path(self.name).expanduser()
        if any((folder / name).is_file() for name in SAVED):
            saved = package.load_from_disk(str(folder))
            if isinstance(saved, package.Dataset):
                saved = {"train": saved}
            if split not in saved:
                near = did_you_mean(split, saved)
                text = f"{self.name!r} has no split {split!r}{near} (splits: {', '.join(saved)})"
                raise ConfigError(text, key=f"data.source.{role}")
            return saved[split]
        path = str(folder) if folder.is_dir() else self.name
        if path.startswith((".", "/", "~")) and not folder.is_dir():
            raise ConfigError(f"there is no folder {self.name!r}", key="data.source.name")
        try:
            return package.load_dataset(path, self.subset, split=split, revision=self.revision)
        except (OSError, ValueError, RuntimeError) as error:  # its ways of saying that a name, split or file is wrong
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ConfigError(f"{self.name!r}, split {split!r}: {reason}", key="data.source.name") from error


def as_table(dataset: Any, split: str) -> Table:
    """The rows of a `datasets.Dataset`: classes by name, images as the bytes of their files, no sound or film."""
    package = datasets_package()
    categories: dict[str, list[str]] = {}
    for column, feature in dataset.features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, package.ClassLabel):
            categories[column] = list(inner.names)
        elif isinstance(feature, package.Image):
            dataset = dataset.cast_column(column, package.Image(decode=False))
        elif type(feature).__name__ in ("Audio", "Video"):
            dataset = dataset.remove_columns(column)
    rows = [
        {column: _named(value, categories.get(column)) for column, value in row.items()} for row in dataset.to_list()
    ]
    return Table(rows, [f"{split}: row {number}" for number in range(len(rows))], categories)


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if value >= 0 else None  # -1 stands for a label that is kept secret


def datasets_package() -> ModuleType:
    """The package `datasets`; a UserError where it is not installed."""
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise UserError("this source needs the package datasets: pip install 'nnicompress[datasets]'") from error
