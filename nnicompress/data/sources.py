"""Where the rows of a data set come from, and how one file is divided into roles."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, get_args

import numpy as np

from nnicompress.data.readers import Documents, read_table
from nnicompress.data.roles import require
from nnicompress.data.splits import stratified_holdout
from nnicompress.data.tables import Table

ROLES = ("train", "validation", "test")


class Source(Protocol):
    """What the setting `source` of a data option is."""

    def roles(self, stratify: str | None = None) -> dict[str, Table]:
        """The rows of train, validation and test.

        `stratify` names a column of classes: where a source divides rows, each role gets its share of each class.
        """


class Files:
    """A file a role, or one file from which fractions are held out; `readers.read_table` tells the formats.

    Where `validation` (or `test`) is None, `validation_fraction` (`test_fraction`) of the rows of `train` take its
    place: the same ones on every machine, evenly over the classes.
    """

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        test: str | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        documents: Documents = "lines",
    ) -> None:
        check_fractions(validation, test, validation_fraction, test_fraction)
        require(documents in get_args(Documents), "source.documents", f"{documents!r} is neither 'lines' nor 'file'")
        self.paths = {"train": train, "validation": validation, "test": test}
        self.fractions = {"validation": validation_fraction, "test": test_fraction}
        self.delimiter, self.encoding, self.documents = delimiter, encoding, documents

    def roles(self, stratify: str | None = None) -> dict[str, Table]:
        """The rows of each role; the files are read now."""
        given = {role: self._read(role, path) for role, path in self.paths.items() if path is not None}
        return fill_roles(given, self.fractions, stratify)

    def _read(self, role: str, path: str) -> Table:
        return read_table(
            Path(path).expanduser(),
            key=f"source.{role}",
            delimiter=self.delimiter,
            encoding=self.encoding,
            documents=self.documents,
        )


def check_source(source: Source) -> None:
    """Raise a ConfigError unless `source` has what a source has; a bare path hasn't."""
    is_path = isinstance(source, str)
    hint = f"name the file as the training data: data.source.train={source}" if is_path else "it must have roles()"
    found = repr(source) if is_path else type(source).__name__
    require(callable(getattr(source, "roles", None)), "source", f"{found} is no source; {hint}")


def check_fractions(validation: str | None, test: str | None, validation_fraction: float, test_fraction: float) -> None:
    """Raise a ConfigError unless the fractions that are needed leave something to train on."""
    taken = 0.0
    for role, given, fraction in (("validation", validation, validation_fraction), ("test", test, test_fraction)):
        if given is None:
            key = f"source.{role}_fraction"
            require(0 < fraction < 1, key, f"{fraction} is not between 0 and 1; or name the {role} data")
            taken += fraction
    both = f"{validation_fraction} and test_fraction {test_fraction} leave nothing to train on"
    require(taken < 1, "source.validation_fraction", both)


def fill_roles(given: dict[str, Table], fractions: dict[str, float], stratify: str | None) -> dict[str, Table]:
    """All three roles: those not in `given` are held out of the train role.

    Args:
        given: the tables that there are; `train` is among them.
        fractions: for validation and test, the part of the train role's rows that stands in for a missing table.
        stratify: a column whose values are divided evenly.
    """
    roles, left = dict(given), given["train"]
    total = len(left)
    for role in ("test", "validation"):
        if role in roles:
            continue
        labels = _numbers(left, stratify)
        held = stratified_holdout(labels, min(fractions[role] * total / len(left), 1.0))
        roles[role], left = left.take(np.flatnonzero(held)), left.take(np.flatnonzero(~held))
        key = f"source.{role}_fraction"
        require(len(roles[role]) > 0, key, f"{fractions[role]} of {total} rows leaves none for the {role} role")
        require(len(left) > 0, key, f"{fractions[role]} of {total} rows leaves none to train on")
    return {role: left if role == "train" else roles[role] for role in ROLES}


def _numbers(table: Table, column: str | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A number for each row, equal for equal values of `column`."""
    if column is None:
        return np.zeros(len(table), dtype=np.int64)
    values = [str(row.get(column)) for row in table.rows]
    numbers = {value: number for number, value in enumerate(sorted(set(values)))}
    return np.array([numbers[value] for value in values], dtype=np.int64)
