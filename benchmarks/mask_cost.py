"""A training step with hard masks beside the same step without: ResNet-18, 3x64x64, batch 32, SGD with momentum.

Two models train in turn, two steps each, in one process; one of them has 50 % of its channels masked. The ratio of the
medians is printed, with the quartiles of the paired ratios.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import nnicompress
from nnicompress.graph import capture, find_channel_groups
from nnicompress.models.resnet import resnet18
from nnicompress.pruning.masks import Masks

CLASSES, BATCH, STEPS_A_TURN = 10, 32, 2


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """The same batch for ever."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 64, 64, generator=generator)
    y = torch.randint(CLASSES, (BATCH,), generator=generator)
    while True:
        yield x, y


def contender() -> tuple[nnicompress.TorchEvaluator, nn.Module, list[float]]:
    """An evaluator with a bare loop, its model, and the list that the loop writes the seconds of each step into."""
    torch.manual_seed(0)
    model, seconds = resnet18(num_classes=CLASSES), []

    def loop(model: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: int, max_epochs: None) -> None:
        model.train()
        for batch in itertools.islice(batches(), max_steps):
            started = time.perf_counter()
            optimizer.zero_grad()
            step(batch, model).backward()
            optimizer.step()
            seconds.append(time.perf_counter() - started)

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


def main() -> None:
    """Print both medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plain, plain_model, without = contender()
    masked, masked_model, with_masks = contender()
    with plain.bound(plain_model), masked.bound(masked_model):
        attach_masks(masked, masked_model)
        for number in range(options.steps // STEPS_A_TURN + 1):
            for evaluator in (plain, masked) if number % 2 else (masked, plain):
                evaluator.train(max_steps=STEPS_A_TURN)
    del without[:STEPS_A_TURN], with_masks[:STEPS_A_TURN]  # the first turn is cold
    ratios = [b / a for a, b in zip(without, with_masks, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"without masks {statistics.median(without) * 1e3:8.1f} ms a step (median of {len(without)})")
    print(f"with masks    {statistics.median(with_masks) * 1e3:8.1f} ms")
    print(f"ratio         {min(with_masks) / min(without):8.3f}    (of the fastest steps)")
    print(f"ratio         {middle:8.3f}    (quartiles of the paired ratios {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
