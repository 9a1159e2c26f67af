"""Blocks: sums, spreading, and shapes that do not fit."""

import pytest
import torch

from nnicompress.errors import ConfigError
from nnicompress.pruning.granularity import block_shape, block_sums, spread_blocks


def test_sums_and_spreading_by_hand():
    elements = torch.arange(16.0).view(4, 4)
    assert block_sums(elements, (2, 2)).tolist() == [0 + 1 + 4 + 5, 2 + 3 + 6 + 7, 8 + 9 + 12 + 13, 10 + 11 + 14 + 15]
    spread = spread_blocks(torch.tensor([True, False, False, True]), (4, 4), (2, 2))
    assert spread.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert block_sums(elements, (1, 4)).tolist() == elements.sum(1).tolist()
    assert torch.equal(spread_blocks(torch.arange(16) > 7, (4, 4), (1, 1)), elements > 7)


def test_shapes():
    assert block_shape("element", (3, 5), tensor="w", key="k") == (1, 1)
    assert block_shape((4, -1), (8, 6, 3, 3), tensor="w", key="k") == (4, 6, 1, 1)
    with pytest.raises(ConfigError, match="k: a block length of 4 does not divide dimension 1 of w, whose size is 6"):
        block_shape((1, 4), (8, 6), tensor="w", key="k")
    with pytest.raises(ConfigError, match="has more dimensions than w"):
        block_shape((1, 4), (8,), tensor="w", key="k")
