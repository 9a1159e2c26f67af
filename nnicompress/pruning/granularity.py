"""Blocks of a tensor as units of pruning: sum scores over blocks, spread a decision on blocks over their elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnicompress.errors import ConfigError

ELEMENT = "element"


def block_shape(granularity: str | Sequence[int], shape: Sequence[int], *, tensor: str, key: str) -> tuple[int, ...]:
    """The block's length along every dimension of a tensor of this shape: 1 each for `element`.

    A block names the leading dimensions; -1 is the whole dimension, and the dimensions it does not name have length 1.

    Raises:
        ConfigError: the block has more dimensions than the tensor, or does not divide it.
    """
    if granularity == ELEMENT:
        return (1,) * len(shape)
    assert not isinstance(granularity, str), granularity
    if len(granularity) > len(shape):
        raise ConfigError(
            f"the block {list(granularity)} has more dimensions than {tensor}, whose shape is {tuple(shape)}",
            key=key,
        )
    lengths = [size if length == -1 else length for length, size in zip(granularity, shape, strict=False)]
    lengths += [1] * (len(shape) - len(lengths))
    for dim, (length, size) in enumerate(zip(lengths, shape, strict=True)):
        if size % length:
            raise ConfigError(
                f"a block length of {length} does not divide dimension {dim} of {tensor}, whose size is {size}", key=key
            )
    return tuple(lengths)


def block_sums(elements: Tensor, block: Sequence[int]) -> Tensor:
    """The sum over each block, flat, in row-major order of the blocks."""
    if all(length == 1 for length in block):
        return elements.reshape(-1)
    split: list[int] = []
    for size, length in zip(elements.shape, block, strict=True):
        split += [size // length, length]
    return elements.reshape(split).sum(dim=tuple(range(1, len(split), 2))).reshape(-1)


def spread_blocks(blocks: Tensor, shape: Sequence[int], block: Sequence[int]) -> Tensor:
    """The inverse of `block_sums` for a decision: every element gets its block's value; the result has `shape`."""
    counts = [size // length for size, length in zip(shape, block, strict=True)]
    spread = blocks.reshape(counts)
    for dim, length in enumerate(block):
        if length > 1:
            spread = torch.repeat_interleave(spread, length, dim=dim)
    return spread
