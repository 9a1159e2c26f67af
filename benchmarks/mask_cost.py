"""A training step with hard masks beside the same step without: ResNet-18, 3x64x64, batch 32, SGD with momentum.

Two models train in turn in one process; one of them has 50 % of its channels masked. Each turn is paired with the other
model's next to it, and which goes first alternates. Printed is the median of the paired ratios with its 95 % confidence
interval (from order statistics, so that no distribution is assumed). With one thread the processor time is taken, which
other people's work on the machine disturbs less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import nnicompress
from nnicompress.graph import capture, find_channel_groups
from nnicompress.models.resnet import resnet18
from nnicompress.pruning.masks import Masks

CLASSES, BATCH, STEPS_A_TURN = 10, 32, 2
Clock = Callable[[], float]


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """The same batch for ever."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 64, 64, generator=generator)
    y = torch.randint(CLASSES, (BATCH,), generator=generator)
    while True:
        yield x, y


def contender(clock: Clock) -> tuple[nnicompress.TorchEvaluator, nn.Module, list[float]]:
    """An evaluator with a bare loop, its model, and the list that the loop writes the seconds of each step into."""
    torch.manual_seed(0)
    model, seconds = resnet18(num_classes=CLASSES), []

    def loop(model: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: int, max_epochs: None) -> None:
        model.train()
        for batch in itertools.islice(batches(), max_steps):
            started = clock()
            optimizer.zero_grad()
            step(batch, model).backward()
            optimizer.step()
            seconds.append(clock() - started)

    evaluator = nnicompress.TorchEvaluator(
        loop,
        nnicompress.trace(torch.optim.SGD)(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4),
        lambda batch, model: nn.functional.cross_entropy(model(batch[0]), batch[1]),
    )
    return evaluator, model, seconds


def attach_masks(evaluator: nnicompress.TorchEvaluator, model: nn.Module) -> None:
    """Half of the channels of every width, drawn at random as an importance would scatter them."""
    rng = np.random.default_rng(0)
    groups = find_channel_groups(capture(model, (torch.randn(2, 3, 64, 64),)))
    removal = {w.name: np.sort(rng.choice(w.size, w.size // 2, replace=False)) for w in groups.widths}
    Masks.from_removal(model, groups.widths, removal).attach(evaluator)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median: the order statistics that a binomial(n, 1/2) leaves out."""
    ordered, count = sorted(values), len(values)
    rank, outside = 0, 0.5**count
    while outside + math.comb(count, rank + 1) * 0.5**count <= 0.025:
        rank += 1
        outside += math.comb(count, rank) * 0.5**count
    return ordered[rank], ordered[count - 1 - rank]


def main() -> None:
    """Print both medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    plain, plain_model, without = contender(clock)
    masked, masked_model, with_masks = contender(clock)
    with plain.bound(plain_model), masked.bound(masked_model):
        attach_masks(masked, masked_model)
        for number in range(options.steps // STEPS_A_TURN + 1):
            for evaluator in (plain, masked) if number % 2 else (masked, plain):
                evaluator.train(max_steps=STEPS_A_TURN)
    turns = [(sum(a), sum(b)) for a, b in zip(turns_of(without), turns_of(with_masks), strict=True)][1:]  # 0 is cold
    ratios = [b / a for a, b in turns]
    low, high = median_interval(ratios)
    print(f"without masks {statistics.median(a for a, _ in turns) / STEPS_A_TURN * 1e3:8.1f} ms a step")
    print(f"with masks    {statistics.median(b for _, b in turns) / STEPS_A_TURN * 1e3:8.1f} ms a step")
    print(f"ratio         {statistics.median(ratios):8.3f}    ({low:.3f} to {high:.3f}, {len(ratios)} pairs of turns)")


def turns_of(seconds: list[float]) -> list[list[float]]:
    """The seconds of each turn."""
    return [seconds[i : i + STEPS_A_TURN] for i in range(0, len(seconds), STEPS_A_TURN)]


if __name__ == "__main__":
    main()
