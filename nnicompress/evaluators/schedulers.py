"""Learning rates with a warm-up, as `LambdaLR`s that are stepped once an optimizer step.

`total_steps` is filled in by the evaluator with the steps of the training where it is not given.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nnicompress.errors import UserError


def constant_warmup(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.05, warmup_steps: int | None = None
) -> LambdaLR:
    """Linear rise to the optimizer's rate, which then stays.

    The rise takes `warmup_steps`, or else `warmup_fraction` of `total_steps` (rounded to a whole step).
    """
    return _with_warmup(optimizer, total_steps, warmup_fraction, warmup_steps, lambda progress: 1.0)


def linear_warmup(
    optimizer: Optimizer,
    total_steps: int,
    warmup_fraction: float = 0.05,
    warmup_steps: int | None = None,
    min_ratio: float = 0.0,
) -> LambdaLR:
    """Linear rise to the optimizer's rate, then a linear fall to `min_ratio` of it at `total_steps`."""
    return _with_warmup(
        optimizer, total_steps, warmup_fraction, warmup_steps, lambda progress: 1.0 - (1.0 - min_ratio) * progress
    )


def cosine_warmup(
    optimizer: Optimizer,
    total_steps: int,
    warmup_fraction: float = 0.05,
    warmup_steps: int | None = None,
    min_ratio: float = 0.0,
) -> LambdaLR:
    """Linear rise to the optimizer's rate, then half a cosine down to `min_ratio` of it at `total_steps`.

    Loshchilov and Hutter 2017 (SGDR, without restarts) with the warm-up of Goyal et al. 2017.
    """

    def cosine(progress: float) -> float:
        return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return _with_warmup(optimizer, total_steps, warmup_fraction, warmup_steps, cosine)


def _with_warmup(
    optimizer: Optimizer,
    total_steps: int,
    warmup_fraction: float,
    warmup_steps: int | None,
    decay: Callable[[float], float],
) -> LambdaLR:
    if not 0.0 <= warmup_fraction <= 1.0:
        raise UserError(f"warmup_fraction {warmup_fraction} is outside [0, 1]: it is the part of the steps that rises")
    rising = round(warmup_fraction * total_steps) if warmup_steps is None else warmup_steps
    if not 0 <= rising <= total_steps:
        raise UserError(f"warmup_steps {rising} is outside [0, {total_steps}], the steps of this training")

    def factor(step: int) -> float:
        if step < rising:
            # The first step already learns something: the rise ends at step `rising`, it doesn't begin at zero.
            return (step + 1) / (rising + 1)
        return decay(min(1.0, (step - rising) / max(1, total_steps - rising)))

    return LambdaLR(optimizer, factor)
