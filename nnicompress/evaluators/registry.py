"""Registrations that can be undone: what a compressor hooks into an evaluator."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Registration:
    """Undoes one registration; twice is harmless."""

    def __init__(self, entries: dict[int, T], key: int) -> None:
        self._entries, self._key = entries, key

    def remove(self) -> None:
        """Forget what was registered."""
        self._entries.pop(self._key, None)


class Registry(Generic[T]):
    """Entries in the order of their registration."""

    def __init__(self) -> None:
        self._entries: dict[int, T] = {}
        self._keys = itertools.count()

    def add(self, entry: T) -> Registration:
        """Register `entry`; the same one twice counts twice."""
        key = next(self._keys)
        self._entries[key] = entry
        return Registration(self._entries, key)

    def keys(self) -> frozenset[int]:
        """Marks what is registered now, for `keep_only`."""
        return frozenset(self._entries)

    def keep_only(self, keys: frozenset[int]) -> None:
        """Forget all that was registered since `keys`."""
        for key in self._entries.keys() - keys:
            del self._entries[key]

    def __iter__(self) -> Iterator[T]:
        # A copy: a hook may remove itself while it runs.
        return iter(tuple(self._entries.values()))

    def __bool__(self) -> bool:
        return bool(self._entries)
