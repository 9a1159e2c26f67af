"""Observers and ranges against numbers worked by hand, numpy, and an exhaustive search."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.observers import Histogram, Magnitudes, RangeObserver, commit
from nnicompress.quantization.ranges import (
    SHRINKS,
    extremes,
    grouped,
    histogram_least_divergence,
    histogram_least_squares,
    least_squares,
    percentile,
    scales_in_place,
)
from nnicompress.quantization.scheme import Granularity, Scheme


def see(observer: RangeObserver, *batches: Tensor) -> None:
    for batch in batches:
        observer.collect(batch)
    commit([observer])


def test_min_max_keeps_the_widest() -> None:
    observer = RangeObserver(Scheme("uint8"))
    assert not observer.seen
    see(observer, torch.tensor([1.0, -2.0]), torch.tensor([0.5]))
    see(observer, torch.tensor([4.0, 0.0]))
    see(observer)  # a step in which its layer did not run
    assert (observer.low.item(), observer.high.item()) == (-2.0, 4.0) and observer.seen


def test_moving_average_by_hand() -> None:
    observer = RangeObserver(Scheme("uint8"), momentum=0.25)
    see(observer, torch.tensor([0.0, 8.0]))
    assert (observer.low.item(), observer.high.item()) == (0.0, 8.0)  # the first counts alone
    see(observer, torch.tensor([-4.0, 0.0]), torch.tensor([2.0, 4.0]))  # two batches of one step: -4 to 4
    assert (observer.low.item(), observer.high.item()) == (-1.0, 7.0)
    see(observer)
    assert (observer.low.item(), observer.high.item()) == (-1.0, 7.0)


def test_one_range_a_channel() -> None:
    observer = RangeObserver(Scheme("int8", granularity=Granularity(1)), (2,))
    see(observer, torch.tensor([[[1.0, 2.0], [-5.0, 0.0]], [[3.0, -1.0], [7.0, 7.0]]]))
    assert observer.low.tolist() == [-1.0, -5.0] and observer.high.tolist() == [3.0, 7.0]


def test_a_copy_has_the_ranges_and_not_the_step_in_progress() -> None:
    observer = RangeObserver(Scheme("uint8"))
    see(observer, torch.tensor([1.0, 2.0]))
    observer.collect(torch.tensor([9.0]))
    other = copy.deepcopy(observer)
    commit([other])
    assert other.high.item() == 2.0


@pytest.mark.parametrize("granularity", [Granularity(), Granularity(1), Granularity(-1, 3), Granularity(1, 2)])
def test_grouping_and_its_inverse(granularity: Granularity) -> None:
    x = torch.arange(4 * 4 * 6.0).reshape(4, 4, 6)
    scheme = Scheme("int8", granularity=granularity)
    groups, shape = grouped(x, scheme)
    low, high = extremes(x, scheme)
    assert low.shape == high.shape == shape
    assert torch.equal(scales_in_place(groups.amin(dim=1), scheme, shape), low)
    if granularity.block_size is not None:
        axis = granularity.axis or 0
        want = torch.stack([part.amax(dim=axis) for part in x.split(granularity.block_size, dim=axis)], dim=axis)
        assert torch.equal(high, want)


def test_a_histogram_counts_as_numpy_does() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    low, high = torch.aminmax(x)
    histogram = Histogram(low, high, bins=256)
    histogram.collect(x[:2000])
    histogram.collect(x[2000:])
    want, _ = np.histogram(x.double().numpy(), bins=256, range=(low.item(), high.item()))
    assert histogram.counts.sum() == 5000
    assert np.abs(histogram.counts.numpy() - want).sum() <= 4  # float32 at a bin's edge
    histogram.collect(torch.tensor([-100.0, 100.0]))
    assert histogram.counts[0] == want[0] + 1 and histogram.counts[-1] == want[-1] + 1


def test_percentile_by_hand() -> None:
    counts = torch.tensor([1.0, 3.0, 92.0, 3.0, 1.0], dtype=torch.float64)
    low, high = percentile(counts, torch.tensor(-5.0), torch.tensor(5.0), 98.0)  # 1 of 100 at either end
    assert (low.item(), high.item()) == (-3.0, 3.0)
    low, high = percentile(counts, torch.tensor(-5.0), torch.tensor(5.0), 92.0)
    assert (low.item(), high.item()) == (-1.0, 1.0)
    low, high = percentile(counts, torch.tensor(0.0), torch.tensor(5.0), 96.0)  # 4, all at the upper end
    assert (low.item(), high.item()) == (0.0, 3.0)


def test_least_squares_is_the_best_of_all_shares() -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(3))
    x[0] = 8.0  # an outlier
    scheme = Scheme("int4")

    def error(low: Tensor, high: Tensor) -> float:
        scale, zero_point = scheme.parameters(low, high)
        return float((fake_quantize(x, scale, zero_point, -8, 7) - x).square().mean())

    found = least_squares(x, scheme)
    best = min(error(x.min() * share, x.max() * share) for share in SHRINKS)
    assert error(*found) == pytest.approx(best, rel=1e-6) and best < 0.8 * error(x.min(), x.max())
    histogram = Histogram(x.min(), x.max())
    histogram.collect(x)
    near = histogram_least_squares(histogram.counts, histogram.low, histogram.high, scheme)
    assert error(*near) == pytest.approx(best, rel=0.05)  # a bin's middle stands for its values


def test_least_squares_of_each_channel_is_its_own() -> None:
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(4))
    x[1, 0] = 20.0
    low, high = least_squares(x, Scheme("int4", granularity=Granularity(0)))
    for channel in range(3):
        alone = least_squares(x[channel], Scheme("int4"))
        assert (low[channel], high[channel]) == (alone[0], alone[1])


def test_histogram_clips_a_far_outlier_and_keeps_a_uniform_range() -> None:
    uniform = torch.ones(2048, dtype=torch.float64)
    low, high = histogram_least_divergence(uniform, torch.tensor(-1.0), torch.tensor(1.0))
    assert (low.item(), high.item()) == (-1.0, 1.0)
    values = torch.randn(20000, generator=torch.Generator().manual_seed(0)).abs()
    values[0] = 3 * values.max()
    histogram = Histogram(torch.tensor(0.0), values.max())
    histogram.collect(values)
    _, clipped = histogram_least_divergence(histogram.counts, histogram.low, histogram.high)
    assert clipped.item() < 0.7 * values.max().item()


def test_magnitudes() -> None:
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(5)) + 1
    magnitudes = Magnitudes()
    for row in x:
        magnitudes.collect(row)
    assert magnitudes.mean_absolute == pytest.approx(x.abs().mean().item(), rel=1e-6)
    assert magnitudes.low == x.min()
