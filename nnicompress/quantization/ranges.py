"""From a tensor, or a histogram of one, to the range that its integers should cover: pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.scheme import Scheme

Range = tuple[Tensor, Tensor]
"""Least and greatest values, in the shape of the scales."""
SHRINKS = tuple(i / 100 for i in range(100, 19, -1))
"""The shares of the full range that a search tries."""
KL_LEVELS = 128
"""Levels of the distribution that `histogram_least_divergence` compares with (Migacz 2017)."""


def grouped(x: Tensor, scheme: Scheme) -> tuple[Tensor, tuple[int, ...]]:
    """`x` as [groups, values], one group a scale, and the shape of the scales; a short last block repeats its end."""
    axis, block = scheme.granularity.axis, scheme.granularity.block_size
    shape = scheme.shape(x.shape)
    if axis is None:
        return x.reshape(1, -1), shape
    if block is None:
        return x.movedim(axis, 0).reshape(x.shape[axis], -1), shape
    blocks = x.movedim(axis, -1)
    count = shape[axis]
    missing = count * block - blocks.shape[-1]
    if missing:
        blocks = torch.cat([blocks, blocks[..., -1:].expand(*blocks.shape[:-1], missing)], dim=-1)
    return blocks.reshape(-1, block), shape


def scales_in_place(values: Tensor, scheme: Scheme, shape: tuple[int, ...]) -> Tensor:
    """One value a group, in the order of `grouped`, as the scheme's scales lie: the inverse of its reordering."""
    axis = scheme.granularity.axis
    if axis is None or scheme.granularity.block_size is None:
        return values.reshape(shape)
    moved = [size for dim, size in enumerate(shape) if dim != axis % len(shape)] + [shape[axis]]
    return values.reshape(moved).movedim(-1, axis)


def extremes(x: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of each group, in float32; an empty tensor has neither (inf, -inf)."""
    if x.numel() == 0:
        shape = scheme.shape(x.shape)
        return x.new_full(shape, torch.inf, dtype=torch.float32), x.new_full(shape, -torch.inf, dtype=torch.float32)
    if scheme.granularity.axis is None:
        low, high = torch.aminmax(x)
        return low.float(), high.float()
    groups, shape = grouped(x, scheme)
    low, high = groups.amin(dim=1), groups.amax(dim=1)  # torch's aminmax along a dimension takes several times as long
    return scales_in_place(low.float(), scheme, shape), scales_in_place(high.float(), scheme, shape)


def least_squares(x: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The shrunk range of each group with the smallest mean squared error of quantization."""
    low, high = extremes(x, scheme)
    best_low, best_high = low.clone(), high.clone()
    best = torch.full_like(low, torch.inf)
    for share in SHRINKS:
        scale, zero_point = scheme.parameters(low * share, high * share)
        quantized = fake_quantize(
            x.float(), scale, zero_point, scheme.quant_min, scheme.quant_max, scheme.granularity.axis
        )
        errors, shape = grouped((quantized - x).square(), scheme)
        error = scales_in_place(errors.mean(dim=1), scheme, shape)
        better = error < best
        best = torch.where(better, error, best)
        best_low, best_high = torch.where(better, low * share, best_low), torch.where(better, high * share, best_high)
    return best_low, best_high


def centers(low: Tensor, high: Tensor, bins: int) -> Tensor:
    """The middles of a histogram's bins."""
    width = (high - low) / bins
    return low + width * (torch.arange(bins, device=low.device, dtype=torch.float32) + 0.5)


def percentile(counts: Tensor, low: Tensor, high: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The range that leaves out (100 - share)/2 percent of the values at either end, to a bin's edge.

    A histogram that lies on one side of zero loses all of it at the other end.
    """
    out = (100.0 - share) / 100.0 * float(counts.sum())
    below = out if float(high) <= 0 else 0.0 if float(low) >= 0 else out / 2
    above = out - below
    width = (high - low) / len(counts)
    skipped_below = int((counts.cumsum(0) <= below).sum())
    skipped_above = int((counts.flip(0).cumsum(0) <= above).sum())
    return low + width * skipped_below, high - width * skipped_above


def histogram_least_squares(counts: Tensor, low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The shrunk range with the smallest squared error over the bins' middles."""
    values = centers(low, high, len(counts))
    best, found = torch.inf, (low, high)
    for share in SHRINKS:
        scale, zero_point = scheme.parameters(low * share, high * share)
        quantized = fake_quantize(values, scale, zero_point, scheme.quant_min, scheme.quant_max)
        error = float((counts * (quantized - values).square().double()).sum())
        if error < best:
            best, found = error, (low * share, high * share)
    return found


def histogram_least_divergence(counts: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range whose clipped distribution loses least information in 128 levels (KL divergence; Migacz 2017).

    Ranges are shrunk from both ends in proportion.
    """
    bins = len(counts)
    best, found = torch.inf, (low, high)
    for share in SHRINKS:
        first = _bin(float(low) * share, low, high, bins)
        last = _bin(float(high) * share, low, high, bins, up=True)
        if last - first < KL_LEVELS:
            break
        inside = counts[first:last].double()
        clipped = inside.clone()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last:].sum()
        divergence = _divergence(clipped, inside)
        if divergence < best:
            best, found = divergence, (low * share, high * share)
    return found


def _bin(value: float, low: Tensor, high: Tensor, bins: int, *, up: bool = False) -> int:
    position = (value - float(low)) / max(float(high - low), 1e-38) * bins
    return min(max(int(position + (1 - 1e-6) if up else position + 1e-6), 0), bins)


def _divergence(wanted: Tensor, inside: Tensor) -> float:
    """KL divergence of `wanted` from `inside` put into equal levels, each spread over its bins that aren't empty."""
    level = torch.arange(len(inside), device=inside.device) * KL_LEVELS // len(inside)
    sums = torch.zeros(KL_LEVELS, dtype=inside.dtype, device=inside.device).index_add_(0, level, inside)
    occupied = (inside > 0).to(inside.dtype)
    numbers = torch.zeros_like(sums).index_add_(0, level, occupied)
    spread = occupied * (sums / numbers.clamp(min=1))[level]
    p, q = wanted / wanted.sum(), spread / spread.sum().clamp(min=1e-38)
    there = p > 0
    return float((p[there] * (p[there] / q[there].clamp(min=1e-12)).log()).sum())
