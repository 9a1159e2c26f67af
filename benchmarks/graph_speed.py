"""Capture, grouping and surgery at 224x224, 50 % of the channels by L1, beside Torch-Pruning in the same process.

`pip install torch-pruning==1.6.1` for the other side. Both start from the same float model and end with a compact one;
rounds alternate, and the medians of the warm rounds are printed.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from nnicompress.graph import capture, find_channel_groups
from nnicompress.models.resnet import resnet18, resnet50
from nnicompress.pruning.masks import Masks
from nnicompress.shrink import prove, shrink

X = torch.randn(1, 3, 224, 224)


def ours(model: nn.Module) -> nn.Module:
    """Half of each width's channel groups, those with the smallest L1 norm over the producing weights."""
    groups = find_channel_groups(capture(model, (X,)))
    parameters = dict(model.named_parameters())
    removal = {}
    for width in groups.widths:
        scores = np.zeros(width.size)
        for slot in width.producers:
            weight = parameters[slot.tensor].detach().transpose(0, slot.dim).flatten(1).abs().sum(1).numpy()
            scores += weight[slot.indices].sum(1)
        removal[width.name] = np.sort(np.argsort(scores, kind="stable")[: width.size // 2])
    return shrink(model, groups, removal)


def theirs(model: nn.Module) -> nn.Module:
    """The same with Torch-Pruning's documented high-level pruner."""
    import torch_pruning as tp

    model = copy.deepcopy(model)  # it works in place; our shrink copies too
    pruner = tp.pruner.MagnitudePruner(
        model, X, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5, ignored_layers=[model.fc]
    )
    pruner.step()
    return model


def timed(function: Callable[[nn.Module], nn.Module], model: nn.Module) -> tuple[float, nn.Module]:
    """Seconds and result."""
    gc.collect()
    started = time.perf_counter()
    result = function(model)
    return time.perf_counter() - started, result


def proof_seconds(model: nn.Module) -> float:
    """How long the proof of the same surgery takes (two batch sizes, float64, random twin)."""
    groups = find_channel_groups(capture(model, (X,)))
    removal = {width.name: np.arange(width.size // 2) for width in groups.widths}
    masked = copy.deepcopy(model)
    Masks.from_removal(masked, groups.widths, removal).apply(masked)
    compact = shrink(masked, groups, removal)
    return prove(masked, compact, groups, removal, [((X,), {}), ((X.repeat(2, 1, 1, 1),), {})]).seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    print(f"{'model':10} {'nnicompress':>12} {'Torch-Pruning':>14} {'ratio':>6} {'proof':>7}   parameters left")
    for build in (resnet18, resnet50):
        model = build().eval()
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        left: dict[str, int] = {}
        for round_number in range(rounds + 1):
            for name, function in (("ours", ours), ("theirs", theirs)):
                spent, compact = timed(function, model)
                left[name] = sum(p.numel() for p in compact.parameters())
                if round_number:  # the first round is cold
                    seconds[name].append(spent)
        own, other = statistics.median(seconds["ours"]), statistics.median(seconds["theirs"])
        print(
            f"{build.__name__:10} {own:10.3f} s {other:12.3f} s {own / other:6.2f} {proof_seconds(model):5.2f} s   "
            f"{left['ours']:,} / {left['theirs']:,}"
        )


if __name__ == "__main__":
    main()
