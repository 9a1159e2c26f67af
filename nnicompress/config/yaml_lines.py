"""The file and line of every key of a YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from nnicompress.paths import shown


def keys_of(file: Path) -> Iterator[tuple[str, str]]:
    """Every dotted key of a YAML file with its `file:line`; entries of lists by their index: `defaults.0`."""
    with file.open(encoding="utf-8") as stream:
        root = yaml.compose(stream, Loader=yaml.SafeLoader)
    for key, line in _walk(root, ""):
        yield key, f"{shown(file)}:{line}"


def _walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    children: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(index), value, value) for index, value in enumerate(node.value)]
    for name, where, value in children:
        yield f"{prefix}{name}", where.start_mark.line + 1
        yield from _walk(value, f"{prefix}{name}.")
