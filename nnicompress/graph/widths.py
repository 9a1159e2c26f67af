"""Channel groups as data: which slots of which tensors are kept or removed together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
UNITS = {
    "heads": "heads",
    "head_dim": "dimensions of each head",
    "ffn": "feed-forward channels",
    "hidden": "hidden channels",
}
"""What one channel group of a width of this kind is called, in the plural."""
Removal = Mapping[str, Indices]
"""Width name -> sorted indices of the channel groups to remove (in `range(width.size)`)."""


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

    `name` is the first producing module (`layer1.0.conv1`), with `#2`, `#3` where one module produces several. `kind`
    says what it is for: `heads` and `head_dim` of attention, `hidden` where norms take statistics over it, `ffn`
    between linear layers, else `channels`.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    kind: str = "channels"

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
    """Integer `attribute` of `module` repeats a width: each removed group i of width w lowers it by `losses[w][i]`.

    A tuple of one integer (`normalized_shape`) counts as that integer.
    """

    module: str
    attribute: str
    losses: Mapping[str, Indices]

    def loss(self, removal: Removal) -> int:
        """By how much the attribute falls in all."""
        return sum(int(self.losses[name][indices].sum()) for name, indices in removal.items() if name in self.losses)


def lowered(value: Any, loss: int) -> Any:
    """An attribute of an AttributeTie, less by `loss`."""
    return tuple(v - loss for v in value) if isinstance(value, tuple) else value - loss


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
class Norm:
    """A module that takes statistics over prunable channels: while they are masked it must leave them out.

    They lie in dimension `dim` (counted from the end) of its input and of its output; `channels` has the number of the
    channel group (as in ModuleOutput) or -1 for each index of it. `tensors` has the dimension of each of the module's
    own tensors that holds them, by its name in the module.
    """

    module: str
    dim: int
    channels: Indices
    tensors: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """All widths of one captured model, what is unprunable and why, and the attributes tied to widths."""

    widths: tuple[Width, ...]
    unprunable: tuple[Unprunable, ...]
    ties: tuple[AttributeTie, ...] = ()
    outputs: tuple[ModuleOutput, ...] = ()
    read: frozenset[tuple[str, str]] = frozenset()
    """(module, attribute) that the forward reads as plain numbers: they keep their values."""
    sizing: frozenset[tuple[str, str]] = frozenset()
    """(module, attribute) that the forward gives as sizes: with the ties followed they are right."""
    norms: tuple[Norm, ...] = ()
    returned: tuple[str, ...] = ()
    """The entries of the forward's result that keep their sizes; none: all of it."""

    def __getitem__(self, name: str) -> Width:
        return next(width for width in self.widths if width.name == name)

    def gone(self, removal: Removal) -> NDArray[np.bool_]:
        """For each channel group, counted through the widths in order, whether `removal` has it."""
        parts = [np.isin(np.arange(w.size), removal.get(w.name, ())) for w in self.widths]
        return np.concatenate([np.empty(0, dtype=np.bool_), *parts])
