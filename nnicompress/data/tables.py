"""Rows with named columns, and where each row came from, so that a message can name the line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnicompress.data.roles import require
from nnicompress.errors import did_you_mean


@dataclass(frozen=True)
class Table:
    """Rows of one role; `places[n]` says where row n is (`reviews.csv:12`).

    `categories` are the class names, in their order, of the columns whose source knows them; the values of such a
    column are names. Paths in a row are relative to `folder`.
    """

    rows: Sequence[Mapping[str, Any]]
    places: Sequence[str]
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    folder: Path | None = None

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.places)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Iterable[int]) -> Table:
        """The rows at `indices`, in that order."""
        chosen = list(indices)
        rows, places = [self.rows[index] for index in chosen], [self.places[index] for index in chosen]
        return Table(rows, places, self.categories, self.folder)

    def column(self, name: str, key: str) -> list[Any]:
        """The values of a column, none of them missing; `key` is the setting that names it.

        Raises:
            ConfigError: about `data.<key>`: there is no such column, or a row has no value in it.
        """
        if not self.rows:
            return []
        known = list(self.rows[0])
        require(
            any(name in row for row in self.rows),
            key,
            f"there is no column {name!r}{did_you_mean(name, known)} (columns: {', '.join(map(str, known))})",
        )
        for row, place in zip(self.rows, self.places, strict=True):
            require(row.get(name) is not None, key, f"{place}: no value in the column {name!r}")
        return [row[name] for row in self.rows]

    def texts(self, name: str, key: str) -> list[str]:
        """The values of a column of texts, none of them empty.

        Raises:
            ConfigError: as `column` does, or a value is no text, or nothing but white space.
        """
        values = self.column(name, key)
        for value, place in zip(values, self.places, strict=True):
            require(isinstance(value, str), key, f"{place}: {name!r} is {type(value).__name__}, not a text")
            require(bool(value.strip()), key, f"{place}: the text in {name!r} is empty; remove the row")
        return values
