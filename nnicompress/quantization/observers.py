"""Observers: what is remembered of the values that pass, over batches and over processes, and the range it makes.

`collect` is called in forwards and keeps to itself; `commit` exchanges between processes, once an optimizer step. What
a later step depends on lies in buffers of fixed shape; what was collected since the last step does not: an engine may
overwrite buffers with those of the main process in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress import exchange
from nnicompress.quantization.ranges import extremes
from nnicompress.quantization.scheme import Scheme


class RangeObserver(nn.Module):
    """Least and greatest values: of everything (momentum None), or their moving average over optimizer steps.

    With a momentum m a step's range counts m, all earlier ones 1 - m; the first one counts alone (Jacob et al. 2018).
    """

    low: Tensor
    high: Tensor

    def __init__(self, scheme: Scheme, scale_shape: Sequence[int] = (), momentum: float | None = None) -> None:
        """See the class; `scale_shape` is that of the scheme's scales."""
        super().__init__()
        self.scheme, self.momentum = scheme, momentum
        shape = tuple(scale_shape)
        self.register_buffer("low", torch.full(shape, torch.inf))
        self.register_buffer("high", torch.full(shape, -torch.inf))
        self._batch: tuple[Tensor, Tensor] | None = None

    def collect(self, x: Tensor) -> None:
        """Take note of one tensor."""
        low, high = extremes(x, self.scheme)
        if self._batch is not None:
            low, high = torch.minimum(low, self._batch[0]), torch.maximum(high, self._batch[1])
        self._batch = low, high

    def pending(self) -> tuple[Tensor, Tensor]:
        """What was collected since the last commit, in lists of numbers; inf and -inf where that is nothing."""
        if self._batch is None:
            return torch.full_like(self.low, torch.inf).reshape(-1), torch.full_like(self.low, -torch.inf).reshape(-1)
        return self._batch[0].reshape(-1), self._batch[1].reshape(-1)

    def forget(self) -> None:
        """Begin to collect anew."""
        self._batch = None

    @property
    def seen(self) -> bool:
        """Whether there is a range."""
        return bool((self.low <= self.high).all())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batch": None}


@torch.no_grad()
def commit(observers: Sequence[RangeObserver]) -> None:
    """Take up what all processes collected, in one exchange; an observer that saw nothing stays as it is.

    All that share a momentum are computed as one vector: a step has many of them, each of few numbers.
    """
    groups: dict[float | None, list[RangeObserver]] = {}
    for observer in observers:
        groups.setdefault(observer.momentum, []).append(observer)
    if not groups:
        return
    lows, highs = zip(*(o.pending() for group in groups.values() for o in group), strict=True)
    collected = exchange.largest(torch.cat([-torch.cat(lows), torch.cat(highs)]))
    low, high = -collected[: len(collected) // 2], collected[len(collected) // 2 :]
    for momentum, group in groups.items():
        count = sum(observer.low.numel() for observer in group)
        _take_up(group, momentum, low[:count], high[:count])
        low, high = low[count:], high[count:]


def _take_up(observers: Sequence[RangeObserver], momentum: float | None, low: Tensor, high: Tensor) -> None:
    before_low, before_high = (
        torch.cat([getattr(observer, end).reshape(-1) for observer in observers]) for end in ("low", "high")
    )
    seen, known = low <= high, before_low <= before_high
    if momentum is None:
        low, high = torch.minimum(low, before_low), torch.maximum(high, before_high)
    else:
        low = torch.where(known, before_low + momentum * (low - before_low), low)
        high = torch.where(known, before_high + momentum * (high - before_high), high)
    low, high = torch.where(seen, low, before_low), torch.where(seen, high, before_high)
    sizes = [observer.low.numel() for observer in observers]
    for observer, own_low, own_high in zip(observers, torch.split(low, sizes), torch.split(high, sizes), strict=True):
        observer.low.copy_(own_low.view_as(observer.low))
        observer.high.copy_(own_high.view_as(observer.high))
        observer.forget()


class Histogram:
    """Counts of values in equal bins of a range that is known; what lies outside counts in the last bin."""

    def __init__(self, low: Tensor, high: Tensor, bins: int = 2048) -> None:
        """`low` and `high`: of the whole tensor, shape ()."""
        self.low, self.high = low.clone(), high.clone()
        self.counts = torch.zeros(bins, dtype=torch.float64, device=low.device)

    def collect(self, x: Tensor) -> None:
        """Count the values of one tensor."""
        bins = len(self.counts)
        width = (self.high - self.low).clamp(min=torch.finfo(torch.float32).tiny) / bins
        index = ((x.detach().float().reshape(-1) - self.low) / width).long().clamp(0, bins - 1)
        self.counts += torch.bincount(index, minlength=bins)

    def reduce(self) -> None:
        """Add the counts of all processes."""
        self.counts = exchange.total(self.counts)


class Magnitudes:
    """The mean of |x| over values, and the least value."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.low = torch.tensor(torch.inf)

    def collect(self, x: Tensor) -> None:
        """Add the values of one tensor."""
        x = x.detach().double()
        self.sums += torch.stack([x.abs().sum(), x.new_tensor(x.numel())]).cpu()
        if x.numel():
            self.low = torch.minimum(self.low, x.min().float().cpu())

    def reduce(self, device: torch.device) -> None:
        """Add those of all processes; `device` is one that they can exchange on."""
        self.sums = exchange.total(self.sums.to(device)).cpu()
        self.low = -exchange.largest(-self.low.to(device)).cpu()

    @property
    def mean_absolute(self) -> float:
        """The mean of |x|."""
        return float(self.sums[0] / self.sums[1])
