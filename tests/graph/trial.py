"""One pruning of one family, proven: what the tests assert and `benchmarks/families.py` prints."""

from __future__ import annotations

import copy
import time
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from nnicompress.graph import ChannelGroups, capture, find_channel_groups, prunable_fraction
from nnicompress.shrink import Proof, prove, shrink
from tests.graph.families import FAMILIES, OUTPUTS, Family, Inputs
from tests.shrink.removals import masked_copy, remove_share
from tests.zoo import perturb_norms


@dataclass(frozen=True)
class Trial:
    """`expected` is the number of parameters that masks leave, counted element by element; `kinds` counts widths."""

    fraction: float
    kinds: Counter[str]
    before: int
    after: int
    expected: int
    proof: Proof
    seconds: float


def groups_of(name: str, inside_heads: bool, hidden: bool) -> tuple[nn.Module, ChannelGroups, list[Inputs]]:
    """The family with random weights and perturbed norms, its channel groups, and inputs of two shapes."""
    return prepared(FAMILIES[name](), OUTPUTS.get(name, ()), inside_heads, hidden)


def prepared(
    family: Family, outputs: tuple[str, ...], inside_heads: bool, hidden: bool
) -> tuple[nn.Module, ChannelGroups, list[Inputs]]:
    """The same for a network that is no family."""
    model, example, other = family
    perturb_norms(model)
    for parameter in model.parameters():
        if parameter.dim() > 1 and float(parameter.detach().std()) == 0:  # a table that starts as zeros
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    captured = capture(model, *example, outputs=outputs)
    return model, find_channel_groups(captured, inside_heads=inside_heads, hidden=hidden), [example, other]


def trial(name: str, ratio: float, inside_heads: bool = False, hidden: bool = True) -> Trial:
    """Remove a random share of every width, and prove the result on both inputs."""
    return trial_of(*groups_of(name, inside_heads, hidden), ratio)


def trial_of(model: nn.Module, groups: ChannelGroups, batches: list[Inputs], ratio: float) -> Trial:
    """The same for what `prepared` gives."""
    started = time.perf_counter()
    removal = remove_share(groups, ratio)
    masked = masked_copy(model, groups, removal)
    compact = shrink(masked, groups, removal)
    proof = prove(masked, compact, groups, removal, batches)
    ones = copy.deepcopy(model)
    for parameter in ones.parameters():
        nn.init.ones_(parameter)
    return Trial(
        prunable_fraction(model, groups),
        Counter(width.kind for width in groups.widths),
        _count(model),
        _count(compact),
        sum(int(torch.count_nonzero(p)) for p in masked_copy(ones, groups, removal).parameters()),
        proof,
        time.perf_counter() - started,
    )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
