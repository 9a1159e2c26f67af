"""Blocks of a tensor as units of pruning: sum scores over blocks, spread a decision on blocks over their elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnicompress.errors import ConfigError
from nnicompress.pruning.settings import N_OF_M

ELEMENT = "element"


def kept_of(granularity: str | Sequence[int]) -> tuple[int, int] | None:
    """(2, 4) for `2:4`, where two of every four weights stay; None for another granularity."""
    found = N_OF_M.fullmatch(granularity) if isinstance(granularity, str) else None
    return None if found is None else (int(found[1]), int(found[2]))


def pool_shape(granularity: str, shape: Sequence[int], *, inputs: int, tensor: str, key: str) -> tuple[int, ...]:
    """The lengths of a pool of which N:M keeps N weights: M input channels at one output and place.

    So lie the weights that a sparse matrix product of NVIDIA's reads (Mishra et al. 2021, section 3). `inputs` is the
    dimension of the input channels.

    Raises:
        ConfigError: the tensor has no input channels, or M does not divide them.
    """
    found = kept_of(granularity)
    assert found is not None, granularity
    if len(shape) < 2 or shape[inputs] % found[1]:
        has = f"{shape[inputs]} input channels" if len(shape) > 1 else "no input channels"
        raise ConfigError(
            f"{granularity} needs a multiple of {found[1]} input channels, and {tensor} has {has}", key=key
        )
    return tuple(found[1] if dim == inputs else 1 for dim in range(len(shape)))


def output_pool(shape: Sequence[int], *, outputs: int, groups: int = 1) -> tuple[int, ...]:
    """The lengths of a pool of all weights that one output sums over.

    `outputs` is the dimension of the output channels. Where that is not the first, the first holds the input channels
    of all `groups` of a transposed convolution, and an output sums over those of its own.
    """
    if len(shape) < 2:
        return (1,) * len(shape)
    lengths = [1 if dim == outputs else size for dim, size in enumerate(shape)]
    if outputs:
        lengths[0] //= groups
    return tuple(lengths)


def lowest_in_pools(
    scores: NDArray[np.float64], shape: Sequence[int], pool: Sequence[int], ratio: float
) -> NDArray[np.int64]:
    """Flat indices of the elements with the lowest scores of each pool, sorted: `ratio` of it, to the nearest count."""
    split: list[int] = []
    for size, length in zip(shape, pool, strict=True):
        split += [size // length, length]
    counts, lengths = range(0, len(split), 2), range(1, len(split), 2)
    members = np.arange(len(scores)).reshape(split).transpose(*counts, *lengths).reshape(-1, int(np.prod(pool)))
    order = np.argsort(scores[members], axis=1, kind="stable")
    count = int(ratio * members.shape[1] + 0.5)
    return np.sort(np.take_along_axis(members, order[:, :count], axis=1).ravel())


def block_shape(granularity: str | Sequence[int], shape: Sequence[int], *, tensor: str, key: str) -> tuple[int, ...]:
    """The block's length along every dimension of a tensor of this shape: 1 each for `element` and N:M.

    A block names the leading dimensions; -1 is the whole dimension, and the dimensions it does not name have length 1.

    Raises:
        ConfigError: the block has more dimensions than the tensor, or does not divide it.
    """
    if granularity == ELEMENT or kept_of(granularity) is not None:
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
