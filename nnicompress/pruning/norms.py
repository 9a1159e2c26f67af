"""Norms over a masked width: their statistics are those of the kept channels, as in the compact model.

A masked channel is zero, but a mean over the width still divides by all channels. So while a width is masked, a norm's
class is swapped for a subclass that runs the norm's own forward on the kept channels, with its parameters cut to them,
and puts zeros where the others were. Names, state_dict keys and parameters stay; `remove` swaps the class back.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnicompress.graph.widths import ChannelGroups, Indices, Removal, lowered


@dataclass(frozen=True, eq=False)
class MaskedNorm:
    """A norm module whose statistics leave channels out.

    `kept` are the indices that stay in dimension `dim` (counted from the end) of its input and of its output,
    `tensors` the dimension of each of its parameters and buffers that holds them, and `losses` by how much each of its
    integer attributes falls.
    """

    module: str
    dim: int
    kept: Indices
    tensors: Mapping[str, int]
    losses: Mapping[str, int]


def masked_norms(groups: ChannelGroups, removal: Removal) -> tuple[MaskedNorm, ...]:
    """The norms that take their statistics over something that `removal` removes."""
    gone = groups.gone(removal)
    found = []
    for norm in groups.norms:
        removed = np.where(norm.channels >= 0, gone[norm.channels], False)
        if removed.any():
            kept = np.flatnonzero(~removed)
            losses = {tie.attribute: tie.loss(removal) for tie in groups.ties if tie.module == norm.module}
            found.append(MaskedNorm(norm.module, norm.dim, kept, norm.tensors, losses))
    return tuple(found)


class RestrictedNorms:
    """The norms of one model, restricted until `remove`."""

    def __init__(self, model: nn.Module, norms: Sequence[MaskedNorm]) -> None:
        self._modules = [model.get_submodule(norm.module) for norm in norms]
        for module, norm in zip(self._modules, norms, strict=True):
            if isinstance(module, Restricted):
                _free(module)
            module._restriction = _Restriction(module, norm)  # type: ignore[assignment]
            module.__class__ = _restricted(type(module))

    def remove(self) -> None:
        """Undo it; twice is harmless."""
        while self._modules:
            module = self._modules.pop()
            if isinstance(module, Restricted):
                _free(module)


class _Restriction:
    """What a restricted norm needs besides itself: a compact shell of it, without parameters of its own."""

    def __init__(self, module: nn.Module, norm: MaskedNorm) -> None:
        self.norm = norm
        self.kept = torch.from_numpy(norm.kept)
        self.shell = copy.copy(module)
        self.shell._parameters, self.shell._buffers = {}, {}
        for attribute, loss in norm.losses.items():
            setattr(self.shell, attribute, lowered(getattr(self.shell, attribute), loss))


class Restricted(nn.Module):
    """Mixed into a norm's own class; its forward takes one tensor and returns one."""

    _restriction: Any
    _own_class: type[nn.Module]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The norm of the kept channels; zeros elsewhere."""
        restriction: _Restriction = self._restriction
        norm, shell = restriction.norm, restriction.shell
        kept = restriction.kept = restriction.kept.to(x.device)
        for own, tensors in ((self._parameters, shell._parameters), (self._buffers, shell._buffers)):
            for name, tensor in own.items():
                cut = tensor is not None and name in norm.tensors
                tensors[name] = tensor.index_select(norm.tensors[name], kept) if cut else tensor  # type: ignore
        result: Tensor = shell.forward(x.index_select(norm.dim, kept), *args, **kwargs)
        shell._parameters.clear()
        shell._buffers.clear()
        shape = list(result.shape)
        shape[norm.dim] = x.shape[norm.dim]
        return result.new_zeros(shape).index_copy(norm.dim, kept, result)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The class is made at run time: pickling and copying name the one it was made of."""
        return _blank, (self._own_class,), vars(self)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _restricted(own: type[nn.Module]) -> type[nn.Module]:
    """One subclass for each class of norms."""
    if own not in _CLASSES:
        members = {"_own_class": own, "__module__": __name__}
        _CLASSES[own] = type(f"Restricted{own.__name__}", (Restricted, own), members)
    return _CLASSES[own]


def _blank(own: type[nn.Module]) -> nn.Module:
    restricted = _restricted(own)
    return restricted.__new__(restricted)


def _free(module: Restricted) -> None:
    module.__class__ = module._own_class  # type: ignore[assignment]
    del module._restriction
