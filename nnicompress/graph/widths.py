"""Channel groups as data: which slots of which tensors are kept or removed together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a width lives in one tensor.

    `tensor` is the name of a parameter or buffer (as in `named_parameters`, the first name where tied), `dim` its
    dimension, and row i of `indices` (shape [width.size, r]) the indices of that dimension that belong to channel
    group i: r is 1 for a convolution's output, H * W for a linear layer behind a flattened map.
    `role` is `output` where the tensor produces the width (a weight's output dimension), `input` where it consumes
    it, `inner` for what lies between (normalisation, bias, plain parameters).
    """

    tensor: str
    dim: int
    indices: Indices
    role: str


@dataclass(frozen=True, eq=False)
class Width:
    """A dimension of the network that can be made narrower: `size` channel groups that live in the same tensors.

    `name` is the first producing module (`layer1.0.conv1`), with `#2`, `#3` where one module produces several.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]

    @property
    def producers(self) -> tuple[Slot, ...]:
        """The slots whose tensor produces this width."""
        return tuple(slot for slot in self.slots if slot.role == "output")

    @property
    def consumers(self) -> tuple[Slot, ...]:
        """The slots whose tensor consumes this width."""
        return tuple(slot for slot in self.slots if slot.role == "input")


@dataclass(frozen=True)
class Unprunable:
    """`count` indices of a parameter's dimension that must stay as they are, and why; `role` is that of a Slot."""

    tensor: str
    dim: int
    count: int
    reason: str
    role: str


@dataclass(frozen=True, eq=False)
class AttributeTie:
    """Integer `attribute` of `module` repeats a width: each removed group i of width w lowers it by `losses[w][i]`."""

    module: str
    attribute: str
    losses: Mapping[str, Indices]


@dataclass(frozen=True, eq=False)
class ModuleOutput:
    """Which channel groups the `call`-th output of a leaf module carries, for naming where two models differ.

    `dims` has one entry a dimension: None where it is fixed, else an array with the channel group's number (counted
    through `ChannelGroups.widths` in order) or -1 for each index.
    """

    module: str
    call: int
    dims: tuple[Indices | None, ...]


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """All widths of one captured model, what is unprunable and why, and the attributes tied to widths."""

    widths: tuple[Width, ...]
    unprunable: tuple[Unprunable, ...]
    ties: tuple[AttributeTie, ...] = ()
    outputs: tuple[ModuleOutput, ...] = ()
    read: frozenset[tuple[str, str]] = frozenset()
    """(module, attribute) that the forward reads as plain numbers: they keep their values."""

    def __getitem__(self, name: str) -> Width:
        return next(width for width in self.widths if width.name == name)


Removal = Mapping[str, Indices]
"""Width name -> sorted indices of the channel groups to remove (in `range(width.size)`)."""
