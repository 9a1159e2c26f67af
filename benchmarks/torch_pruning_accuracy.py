"""Accuracy beside Torch-Pruning at 2 and 3 times fewer multiply-accumulates, over all 1,797 digits in five folds.

ResNet-20. In each fold all sides start from the same trained network, see the same batches for their scores, prune at
once and are fine-tuned by the same function with the same seed. Ours is `target: {macs: ...}` with Taylor importance
and global allocation, scores normalised by each width's mean, or not. Torch-Pruning's iterated removal stops at the
first of its 50 steps that meets the target; its scores are normalised by the mean, as its defaults have it. A network
is tested on its fold's fifth of the images, once.

`pip install torch-pruning==1.6.1` for the other side.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import math
import statistics
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import nnicompress
from nnicompress.data.digits import Digits
from nnicompress.graph import count_macs
from nnicompress.models.resnet import resnet20
from nnicompress.shrink import shrink

BATCHES = 80
"""Batches that scores are gathered over, as in the preset `taylorfo`."""
X = torch.randn(1, 1, 8, 8)
STEPS = 50


@dataclass(frozen=True)
class Start:
    """What all sides start from: the trained network, and for the scores batches and the sum of their gradients."""

    network: nn.Module
    seen: list[tuple[Tensor, Tensor]]
    gradients: list[Tensor]


Method = Callable[[Start, float], nn.Module]
"""(start, share of the multiply-accumulates to keep) -> compact network."""


def trained(model: nn.Module, data: Digits, epochs: int, rate: float, seed: int) -> nn.Module:
    """SGD with momentum on one cycle of the rate; the model itself."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    loader = data.train_loader(seed)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * len(loader), pct_start=0.3)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def correct(model: nn.Module, data: Digits) -> int:
    """How many of the fold's test images."""
    return sum(int((model(images).argmax(1) == labels).sum()) for images, labels in data.test_loader())


def start(data: Digits, seed: int) -> Start:
    """A network trained on the fold, and what it makes of the first batches."""
    torch.manual_seed(seed)
    network = trained(resnet20(in_channels=1), data, 12, 0.1, seed)
    loader = data.train_loader(seed)
    seen = list(itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), BATCHES))
    network.zero_grad()
    for images, labels in seen:
        cross_entropy(network(images), labels).backward()
    return Start(network, seen, [p.grad for p in network.parameters() if p.grad is not None])


def ours(normalize: str) -> Method:
    """nnicompress: Taylor importance, all layers competing on scores that are normalised so."""
    return functools.partial(_ours, normalize)


def _ours(normalize: str, at: Start, keep: float) -> nn.Module:
    def loop(model, optimizer, training_step, scheduler, max_steps, max_epochs):  # type: ignore[no-untyped-def]
        model.eval()
        for batch in itertools.islice(itertools.cycle(at.seen), max_steps):
            optimizer.zero_grad()
            training_step(batch, model).backward()
            optimizer.step()

    model = copy.deepcopy(at.network)
    optimizer = nnicompress.trace(torch.optim.SGD)(model.parameters(), lr=0.1)
    evaluator = nnicompress.TorchEvaluator(
        loop, optimizer, lambda batch, model: cross_entropy(model(batch[0]), batch[1]), dummy_input=X
    )
    pruner = nnicompress.Pruner(
        [{"op_types": ["Conv2d"]}], evaluator, target={"macs": keep},
        importance={"name": "taylor", "training_steps": BATCHES}, allocation={"name": "global", "normalize": normalize},
    )  # fmt: skip
    result = pruner.compress(model)
    assert result.groups is not None
    return shrink(model, result.groups, result.removal)


def theirs(importance: str, *, across: bool) -> Method:
    """Torch-Pruning: an importance by its name there, `across` all layers (global) or the same share of each."""
    return functools.partial(_theirs, importance, across)


def _theirs(importance: str, across: bool, at: Start, keep: float) -> nn.Module:
    import torch_pruning as tp

    model, goal = copy.deepcopy(at.network), keep * macs(at.network)
    for parameter, gradient in zip(model.parameters(), at.gradients, strict=True):
        parameter.grad = gradient.clone()
    pruner = tp.pruner.BasePruner(
        model, X, importance=getattr(tp.importance, importance)(), global_pruning=across, pruning_ratio=0.99,
        max_pruning_ratio=0.95, iterative_steps=STEPS, ignored_layers=[model.fc],
    )  # fmt: skip
    for _ in range(STEPS):
        pruner.step()
        if macs(model) <= goal:
            return model
    raise SystemExit(f"Torch-Pruning's {importance} never came down to {keep:.0%} of the multiply-accumulates")


METHODS: dict[str, Method] = {
    "ours": ours("mean"),
    "ours, not normalised": ours("none"),
    "TP Taylor global": theirs("GroupTaylorImportance", across=True),
    "TP Taylor local": theirs("GroupTaylorImportance", across=False),
    "TP magnitude local": theirs("GroupMagnitudeImportance", across=False),
}


def macs(model: nn.Module) -> int:
    """Of one image."""
    return count_macs(model, (X,)).total


Results = dict[tuple[float, str], float]
"""(share of the multiply-accumulates, method) -> accuracy in per cent; (1, "baseline") is the trained network's."""


def one_fold(fold: int, seed: int, shares: list[float]) -> Results:
    """Train, prune by each method, fine-tune, test; prints a line for each share."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = Digits(fold=fold)
    count = len(data.indices["test"])
    at = start(data, seed)
    results = {(1.0, "baseline"): 100 * correct(at.network, data) / count}
    for keep in shares:
        cells = []
        for name, prune in METHODS.items():
            compact = prune(at, keep)
            left = macs(compact) / macs(at.network)
            trained(compact, data, 4, 0.02, seed)
            results[keep, name] = 100 * correct(compact, data) / count
            cells.append(f"{results[keep, name]:.2f} ({left:.3f})")
        line = f"{fold:4} {keep:5.2f} {results[1.0, 'baseline']:9.2f}" + "".join(f"{cell:>22}" for cell in cells)
        print(line, flush=True)
    return results


def main() -> None:
    """Print a line for each fold and share, then the means and the paired differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 1 / 3])
    parser.add_argument("--processes", type=int, default=1, help="folds at once")
    options = parser.parse_args()
    print(f"{'fold':>4} {'keep':>5} {'baseline':>9}" + "".join(f"{name:>22}" for name in METHODS))
    with ProcessPoolExecutor(options.processes) as pool:
        folds = list(pool.map(functools.partial(one_fold, seed=options.seed, shares=options.keep), options.folds))
    print(f"baseline {statistics.mean(fold[1.0, 'baseline'] for fold in folds):.2f}")
    for keep in options.keep:
        print(f"at {keep:.2f} of the multiply-accumulates: ours {statistics.mean(f[keep, 'ours'] for f in folds):.2f}")
        for name in METHODS:
            pairs = [fold[keep, "ours"] - fold[keep, name] for fold in folds]
            if name != "ours":
                error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
                print(
                    f"   {name:22} {statistics.mean(fold[keep, name] for fold in folds):6.2f}   "
                    f"ours minus it {statistics.mean(pairs):+.2f} +- {error:.2f}"
                )


if __name__ == "__main__":
    main()
