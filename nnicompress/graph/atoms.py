"""Disjoint sets of channel slots: the bookkeeping under the channel groups.

An atom is one index of one dimension of one tensor. Two atoms that must be kept or removed together are united;
what is united at the end is one channel group. All operations take arrays of atoms, because a model has tens of
thousands of them.
"""

from __future__ import annotations

import numpy as np

from nnicompress.graph.widths import Indices


class Atoms:
    """Union-find over integers 0..n-1, with a reason for each atom that must not be removed."""

    def __init__(self) -> None:
        self._parent: Indices = np.arange(0, dtype=np.int64)
        self._size = 0
        self._locks: list[tuple[Indices, str]] = []
        self._consequences: list[tuple[Indices, str]] = []

    def __len__(self) -> int:
        return self._size

    def new(self, count: int) -> Indices:
        """`count` fresh atoms, each its own set."""
        start, self._size = self._size, self._size + count
        if self._size > len(self._parent):
            grown = np.arange(max(self._size, 2 * len(self._parent), 1024), dtype=np.int64)
            grown[: len(self._parent)] = self._parent
            self._parent = grown
        return np.arange(start, self._size, dtype=np.int64)

    def find(self, atoms: Indices) -> Indices:
        """The representative of each atom's set (the smallest atom of it)."""
        roots = self._parent[atoms]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[atoms] = roots  # path compression
        return roots

    def unite(self, left: Indices, right: Indices) -> None:
        """Put left[i] and right[i] (after broadcasting) into one set, for each i."""
        left, right = np.broadcast_arrays(left, right)
        left, right = left.ravel(), right.ravel()
        while True:
            a, b = self.find(left), self.find(right)
            differ = a != b
            if not differ.any():
                return
            # One high root may be hooked under only one low root at a time; what loses is retried on the next turn.
            np.minimum.at(self._parent, np.maximum(a, b)[differ], np.minimum(a, b)[differ])

    def lock(self, atoms: Indices, reason: str, *, consequence: bool = False) -> None:
        """The sets of these atoms must stay whole.

        The first reason given is the one that is reported; a mere consequence of another lock only where no other is.
        """
        if atoms.size:
            locks = self._consequences if consequence else self._locks
            locks.append((np.array(atoms, dtype=np.int64).ravel(), reason))

    def locked(self) -> dict[int, str]:
        """Representative -> the first reason for which its set must stay."""
        reasons: dict[int, str] = {}
        for atoms, reason in (*self._locks, *self._consequences):
            for root in np.unique(self.find(atoms)).tolist():
                reasons.setdefault(root, reason)
        return reasons
