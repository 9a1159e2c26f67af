"""Local files as tables: CSV, JSON, JSON lines and plain text, by the standard library alone."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from nnicompress.data.tables import Table
from nnicompress.errors import ConfigError

Documents = Literal["lines", "file"]
"""Whether each line of a plain text file is a document, or the whole file is one."""

DELIMITERS = {".csv": ",", ".tsv": "\t"}
EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".md")


def read_table(
    path: Path, *, key: str, delimiter: str | None = None, encoding: str = "utf-8", documents: Documents = "lines"
) -> Table:
    """The rows of a file; the name's ending says how it is read.

    `.csv` and `.tsv` begin with a line of column names; `.json` is a list of objects; `.jsonl` and `.ndjson` have an
    object a line; `.txt` and `.md` give the one column `text`.

    Raises:
        ConfigError: about `data.<key>`: no such file, an unknown ending, an undecodable byte, a malformed line, no row.
    """
    suffix = path.suffix.lower()
    if suffix not in EXTENSIONS:
        raise _error(key, f"{path.name!r} ends in {suffix or 'nothing'!r}; it must end in {', '.join(EXTENSIONS)}")
    text = _decoded(path, key, encoding)
    if suffix in DELIMITERS:
        table = _csv(text, path, key, delimiter or DELIMITERS[suffix])
    elif suffix == ".json":
        table = _json(text, path, key)
    elif suffix in (".jsonl", ".ndjson"):
        table = _numbered(text, path, lambda line, place: _object(line, place, key))
    elif documents == "lines":
        table = _numbered(text, path, lambda line, place: {"text": line})
    else:
        table = Table([{"text": text}] if text.strip() else [], [path.name] if text.strip() else [], folder=path.parent)
    if not len(table):
        raise _error(key, f"{path.name!r} is empty")
    return table


def _decoded(path: Path, key: str, encoding: str) -> str:
    if not path.is_file():
        near = sorted(other.name for other in path.parent.iterdir()) if path.parent.is_dir() else []
        there = f" (in that folder: {', '.join(near[:8])})" if near else ""
        raise _error(key, f"there is no file {str(path)!r}{there}")
    try:
        # Windows programs begin UTF-8 files with a byte order mark, which would become part of the first name.
        return path.read_bytes().decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except LookupError as error:
        raise ConfigError(f"{encoding!r} is not an encoding that Python knows", key="data.source.encoding") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _error(
            key,
            f"{path.name}:{line}: byte 0x{error.object[error.start]:02x} is not {encoding}; convert the file, or "
            "set data.source.encoding",
        ) from error


def _csv(text: str, path: Path, key: str, delimiter: str) -> Table:
    if len(delimiter) != 1:
        raise ConfigError(f"{delimiter!r} is not one character", key="data.source.delimiter")
    rows, places = [], []
    with _long_fields():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
            if len(set(names)) < len(names):
                raise _error(key, f"{path.name}:1: a column name occurs twice: {', '.join(names)}")
            for fields in reader:
                place = f"{path.name}:{reader.line_num}"
                if len(fields) not in (0, len(names)):
                    raise _error(key, f"{place}: {len(fields)} fields, and line 1 names {len(names)} columns")
                if fields:
                    rows.append(dict(zip(names, fields, strict=True)))
                    places.append(place)
        except csv.Error as error:
            raise _error(key, f"{path.name}:{reader.line_num}: {error}") from error
    return Table(rows, places, folder=path.parent)


@contextmanager
def _long_fields() -> Iterator[None]:
    """The module refuses fields of more than 131,072 characters; documents may be longer."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _json(text: str, path: Path, key: str) -> Table:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file with one object a line ends in .jsonl" if error.msg == "Extra data" else ""
        raise _error(key, f"{path.name}:{error.lineno}: not JSON: {error.msg}{hint}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _error(key, f"{path.name!r} must hold a list of objects, [{{...}}, ...]")
    return Table(rows, [f"{path.name}: row {number}" for number in range(1, len(rows) + 1)], folder=path.parent)


def _numbered(text: str, path: Path, row: Callable[[str, str], dict[str, Any]]) -> Table:
    """One row for each line that is not blank."""
    rows, places = [], []
    # Not splitlines(): it also divides at characters such as U+2028, which JSON allows inside a text.
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            place = f"{path.name}:{number}"
            rows.append(row(line.rstrip("\n"), place))
            places.append(place)
    return Table(rows, places, folder=path.parent)


def _object(line: str, place: str, key: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _error(key, f"{place}: not JSON: {error.msg} at character {error.colno}") from error
    if not isinstance(row, dict):
        raise _error(key, f"{place}: {type(row).__name__} where an object {{...}} is needed")
    return row


def _error(key: str, message: str) -> ConfigError:
    return ConfigError(message, key=f"data.{key}")
