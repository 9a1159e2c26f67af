"""Stratified splits, counted class by class."""

from __future__ import annotations

import numpy as np
import pytest

from nnicompress.data.splits import class_by_class, stratified_folds, stratified_holdout

LABELS = np.random.RandomState(5).choice(4, size=1003, p=[0.5, 0.3, 0.15, 0.05]).astype(np.int64)


@pytest.mark.parametrize("num_folds", [2, 5, 7])
def test_folds_are_even_in_size_and_class(num_folds):
    folds = stratified_folds(LABELS, num_folds)
    assert np.ptp(np.bincount(folds, minlength=num_folds)) <= 1
    for label in range(4):
        assert np.ptp(np.bincount(folds[label == LABELS], minlength=num_folds)) <= 1


@pytest.mark.parametrize("fraction", [0.1, 0.125, 1 / 3])
def test_holdout_takes_its_share_of_each_class(fraction):
    held = stratified_holdout(LABELS, fraction)
    assert abs(held.sum() - fraction * len(LABELS)) <= 1
    for label in range(4):
        members = label == LABELS
        assert abs(held[members].sum() - fraction * members.sum()) <= 1


def test_order_is_a_shuffle_within_classes_and_frozen():
    order = class_by_class(LABELS)
    assert sorted(order) == list(range(len(LABELS)))
    assert (np.diff(LABELS[order]) >= 0).all()
    first = order[LABELS[order] == 0]
    assert (np.diff(first) < 0).any()
    # Written down once: another order would change which images every reported accuracy is measured on.
    assert class_by_class(np.array([0, 1, 0, 1, 0, 1, 0, 1], dtype=np.int64)).tolist() == FROZEN


FROZEN = [6, 2, 0, 4, 1, 7, 3, 5]
