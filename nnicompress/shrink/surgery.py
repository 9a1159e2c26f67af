"""Remove channel groups from a model: slice every tensor they live in, rewrite every attribute that repeats them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from nnicompress.graph.widths import ChannelGroups, Indices, Removal, lowered


def shrink(model: nn.Module, groups: ChannelGroups, removal: Removal) -> nn.Module:
    """A compact deep copy of `model` without the removed channel groups; `model` itself is left as it is.

    Parameters stay parameters with their `requires_grad`, names stay, tied tensors stay tied. Raises KeyError for a
    width that the groups don't have.
    """
    # A tensor that deepcopy meets is looked up in the memo first: this is what keeps ties and shared modules intact.
    memo: dict[int, object] = {}
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, kept in kept_indices(groups, removal, {n: t.shape for n, t in tensors.items()}).items():
        tensor = tensors[name]
        memo[id(tensor)] = _take(tensor, kept)
    compact = copy.deepcopy(model, memo)
    _follow_ties(compact, groups, removal)
    changed = {id(tensor) for tensor in memo.values()}
    for module in compact.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(id(tensor) in changed for tensor in own):
            follow_own_tensors(module)
    for path, attribute in groups.read:
        setattr(compact.get_submodule(path), attribute, getattr(model.get_submodule(path), attribute))
    return compact


def removed_indices(groups: ChannelGroups, removal: Removal) -> dict[str, dict[int, Indices]]:
    """Tensor name -> dimension -> sorted indices that go."""
    removed: dict[str, dict[int, list[Indices]]] = defaultdict(lambda: defaultdict(list))
    for name, indices in removal.items():
        width = groups[name]
        assert len(indices) < width.size, f"nothing would be left of {name}"
        for slot in width.slots:
            removed[slot.tensor][slot.dim].append(slot.indices[indices].ravel())
    return {t: {d: np.sort(np.concatenate(p)) for d, p in dims.items()} for t, dims in removed.items()}


def kept_indices(
    groups: ChannelGroups, removal: Removal, shapes: Mapping[str, torch.Size]
) -> dict[str, dict[int, Indices]]:
    """Tensor name -> dimension -> sorted indices that stay, for the dimensions that lose some."""
    return {
        tensor: {dim: _others(gone, shapes[tensor][dim]) for dim, gone in sorted(dims.items()) if gone.size}
        for tensor, dims in removed_indices(groups, removal).items()
    }


def _others(gone: Indices, size: int) -> Indices:
    """What of `range(size)` is not in `gone`."""
    stays = np.ones(size, dtype=bool)
    stays[gone] = False
    return np.flatnonzero(stays)


def _take(tensor: Tensor, kept: Mapping[int, Indices]) -> Tensor:
    result = tensor.detach()
    for dim, indices in kept.items():  # the first dimension first: its rows are copied whole
        result = result.index_select(dim, torch.from_numpy(indices).to(tensor.device))
    result = result.contiguous()
    return nn.Parameter(result, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else result


def _follow_ties(model: nn.Module, groups: ChannelGroups, removal: Removal) -> None:
    for tie in groups.ties:
        if loss := tie.loss(removal):
            module = model.get_submodule(tie.module)
            setattr(module, tie.attribute, lowered(getattr(module, tie.attribute), loss))


def follow_own_tensors(module: nn.Module) -> None:
    """Set what torch.nn documents as the sizes of a module's own tensors (`out_channels`, `num_features` ...).

    They are tied to the tensors by their definition; what a forward reads of them as a number is kept by `shrink`.
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sizes = [t.shape[0] for t in (module.weight, module.running_mean) if t is not None]
        module.num_features = sizes[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
