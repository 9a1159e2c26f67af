"""Masking and removing by hand, for the tests of shrinking."""

import copy

import numpy as np
import torch
from torch import nn

from nnicompress.evaluators.contract import ModelInput
from nnicompress.graph.capture import capture
from nnicompress.graph.groups import find_channel_groups
from nnicompress.graph.widths import ChannelGroups, Indices
from tests.zoo import ZOO, perturb_norms, random_inputs


def remove_share(groups: ChannelGroups, share: float, seed: int = 0) -> dict[str, Indices]:
    """A random share of every width, rounded down, at least one group and never all."""
    rng = np.random.default_rng(seed)
    return {
        width.name: np.sort(rng.choice(width.size, min(width.size - 1, max(1, int(width.size * share))), replace=False))
        for width in groups.widths
    }


def masked_copy(model: nn.Module, groups: ChannelGroups, removal: dict[str, Indices]) -> nn.Module:
    """A copy with every parameter slot of the removed groups at zero, index by index."""
    masked = copy.deepcopy(model)
    parameters = dict(masked.named_parameters())
    with torch.no_grad():
        for name, removed in removal.items():
            for slot in groups[name].slots:
                if slot.tensor in parameters:
                    for row in removed:
                        for index in slot.indices[row]:
                            parameters[slot.tensor].select(slot.dim, int(index)).zero_()
    return masked


def zoo_case(name: str) -> tuple[nn.Module, ChannelGroups, list[ModelInput]]:
    """A model with perturbed norms, its groups, and inputs of two batch sizes (one, where the batch size is fixed)."""
    model, example = ZOO[name]()
    perturb_norms(model, 1)
    groups = find_channel_groups(capture(model, *example))
    sizes = (8,) if name == "coincidence" else (2, 5)
    return model, groups, [random_inputs(example, size, seed) for seed, size in enumerate(sizes)]
