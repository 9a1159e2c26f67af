"""Stratified splits: fixed by the labels alone, so that every run, seed and machine sees the same roles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Indices = NDArray[np.int64]


def class_by_class(labels: Labels, seed: int = 0) -> Indices:
    """All indices, sorted by class and shuffled within each.

    `RandomState` rather than `default_rng`: its stream is frozen across NumPy versions.
    """
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")].astype(np.int64)


def stratified_folds(labels: Labels, num_folds: int) -> Indices:
    """The fold of each sample: sizes of folds differ by at most 1, and so do a class's counts among folds."""
    folds = np.empty(len(labels), dtype=np.int64)
    folds[class_by_class(labels)] = np.arange(len(labels)) % num_folds
    return folds


def stratified_holdout(labels: Labels, fraction: float) -> NDArray[np.bool_]:
    """Mark `fraction` of the samples, evenly over the classes (each within 1 of its share)."""
    share = np.floor(np.arange(len(labels) + 1) * fraction)
    held = np.zeros(len(labels), dtype=np.bool_)
    held[class_by_class(labels)] = np.diff(share) > 0
    return held
