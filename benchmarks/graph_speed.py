"""Capture, channel groups and surgery, half of every width by L1, beside Torch-Pruning in the same process.

ResNet-18, ResNet-50 and ViT-B/16 at 224x224 and BERT-base at 128 tokens; of the transformers half of the heads, of the
feed-forward and of the hidden widths. `pip install torch-pruning==1.6.1` for the other side; it is told which layers
are queries, keys and values and how many heads they have, without which its numbers would be wrong.

Both start from the same float model and end with a compact one; rounds alternate, and the medians of the warm rounds
are printed, in seconds of processor time on one thread. Memory is each side's alone, in a process of its own that has
loaded all code by pruning a small network: the model's bytes and what was resident at the peak above what was before,
over the model's bytes.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from networks import NETWORKS, attention_of, batch, build
from torch import nn

from nnicompress.graph import capture, find_channel_groups
from nnicompress.pruning.importance import IMPORTANCES
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.scores import score_once
from nnicompress.shrink import prove, shrink


def ours(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Half of each width's channel groups, those with the smallest L1 norm over the producing weights."""
    groups = find_channel_groups(capture(model, (x,)), hidden=True)
    scores = score_once(model, IMPORTANCES["l1"], groups.widths, {})
    removal = {
        width.name: np.sort(np.argsort(scores[width.name], kind="stable")[: width.size // 2]) for width in groups.widths
    }
    return shrink(model, groups, removal)


def theirs(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The same with Torch-Pruning's documented high-level pruner."""
    import torch_pruning as tp

    model = copy.deepcopy(model)  # it works in place; our shrink copies too
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    pruner = tp.pruner.MagnitudePruner(
        model, x, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5, ignored_layers=[last],
        num_heads=attention_of(model), prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.5,
    )  # fmt: skip
    pruner.step()
    return model


SIDES: dict[str, Callable[[nn.Module, torch.Tensor], nn.Module]] = {"ours": ours, "theirs": theirs}


def resident(key: str) -> int:
    """Bytes of `VmRSS` (now) or `VmHWM` (the most since it was reset)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def peak(side: str, name: str) -> float:
    """Bytes at the peak, the model's own included, over the model's bytes; for a fresh process."""
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 2))
    SIDES[side](small.eval(), torch.randn(1, 3, 5, 5))
    model, x = build(name), batch(name, 1)
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
    before = resident("VmRSS")
    SIDES[side](model, x)
    return 1 + (resident("VmHWM") - before) / size


def measured_peak(side: str, name: str) -> float:
    """`peak` in a process of its own."""
    command = [sys.executable, __file__, "--peak", side, name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def proof_seconds(name: str) -> float:
    """How long the proof of the same surgery takes (two batch sizes, float64, random twin)."""
    model = build(name)
    groups = find_channel_groups(capture(model, (batch(name, 1),)), hidden=True)
    removal = {width.name: np.arange(width.size // 2) for width in groups.widths}
    masked = copy.deepcopy(model)
    Masks.from_removal(masked, groups.widths, removal).apply(masked)
    compact = shrink(masked, groups, removal)
    return prove(masked, compact, groups, removal, [((batch(name, size),), {}) for size in (1, 2)]).seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--peak", nargs=2, metavar=("SIDE", "NETWORK"), help="one side's memory in this process")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.peak:
        print(peak(*options.peak))
        return
    print(f"{'seconds':10} nnicompress Torch-Pruning ratio proof   peak, of the model's bytes   parameters left")
    for name in options.networks:
        model, x = build(name), batch(name, 1)
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        left: dict[str, int] = {}
        for round_number in range(options.rounds + 1):
            for side, function in SIDES.items():
                gc.collect()
                started = time.process_time()
                compact = function(model, x)
                if round_number:  # the first round is cold
                    seconds[side].append(time.process_time() - started)
                left[side] = sum(p.numel() for p in compact.parameters())
        own, other = (statistics.median(spent) for spent in seconds.values())
        peaks = [measured_peak(side, name) for side in SIDES]
        print(
            f"{name:10} {own:11.2f} {other:13.2f} {own / other:5.2f} {proof_seconds(name):5.1f}   "
            f"{peaks[0]:11.2f} / {peaks[1]:.2f}              {left['ours']:,} / {left['theirs']:,}",
            flush=True,
        )


if __name__ == "__main__":
    main()
