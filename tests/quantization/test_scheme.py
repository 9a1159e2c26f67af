"""Integer ranges, shapes and scales of schemes, against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from nnicompress.quantization.scheme import Granularity, Scheme


@pytest.mark.parametrize(
    ("scheme", "low", "high", "middle"),
    [
        (Scheme("int8"), -128, 127, 0),
        (Scheme("uint8"), 0, 255, 128),
        (Scheme("int8", symmetric=True), -127, 127, 0),
        (Scheme("int8", symmetric=True, full_range=True), -128, 127, 0),
        (Scheme("uint8", symmetric=True), 1, 255, 128),
        (Scheme("int2", symmetric=True), -1, 1, 0),
        (Scheme("uint2"), 0, 3, 2),
        (Scheme("int4"), -8, 7, 0),
    ],
)
def test_integers(scheme: Scheme, low: int, high: int, middle: int) -> None:
    assert (scheme.quant_min, scheme.quant_max, scheme.middle) == (low, high, middle)


def test_shapes_of_scales() -> None:
    weight = (6, 10, 3)
    assert Scheme("int8").shape(weight) == ()
    assert Scheme("int8", granularity=Granularity(axis=0)).shape(weight) == (6,)
    assert Scheme("int8", granularity=Granularity(axis=-1)).shape(weight) == (3,)
    assert Scheme("int8", granularity=Granularity(axis=1, block_size=4)).shape(weight) == (6, 3, 3)
    with pytest.raises(ValueError, match="has no dimension 3"):
        Scheme("int8", granularity=Granularity(axis=3)).shape(weight)


def test_an_affine_range_of_one_octave() -> None:
    # [-1, 2] in 0..255: scale 3/255, and -1 is 85 steps below zero.
    scale, zero_point = Scheme("uint8").parameters(torch.tensor(-1.0), torch.tensor(2.0))
    assert scale.item() == pytest.approx(3 / 255) and zero_point.item() == 85
    assert scale.dtype == torch.float32 and zero_point.dtype == torch.int32


def test_an_affine_range_reaches_to_zero() -> None:
    scale, zero_point = Scheme("uint8").parameters(torch.tensor([1.0, -2.0]), torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(scale, torch.tensor([2 / 255, 2 / 255]))
    assert zero_point.tolist() == [0, 255]


def test_a_symmetric_range_takes_the_larger_side() -> None:
    scale, zero_point = Scheme("int8", symmetric=True).parameters(torch.tensor(-1.0), torch.tensor(2.0))
    assert scale.item() == pytest.approx(2 / 127) and zero_point.item() == 0
    scale, zero_point = Scheme("uint8", symmetric=True).parameters(torch.tensor(-3.0), torch.tensor(2.0))
    assert scale.item() == pytest.approx(3 / 127) and zero_point.item() == 128


def test_channels_of_zeros_get_the_largest_scale_of_the_others() -> None:
    scheme = Scheme("int8", symmetric=True, granularity=Granularity(axis=0))
    scale, _ = scheme.parameters(torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 0.5, 0.25]))
    torch.testing.assert_close(scale, torch.tensor([1 / 127, 1 / 127, 0.25 / 127]))
    assert Scheme("uint8").parameters(torch.tensor(0.0), torch.tensor(0.0))[0].item() == 1


@pytest.mark.parametrize("dtype", ["int1", "int9", "uint16", "float8", "int", ""])
def test_no_such_type(dtype: str) -> None:
    with pytest.raises(ValueError, match="no integer type"):
        Scheme(dtype)


def test_a_block_needs_an_axis() -> None:
    with pytest.raises(ValueError, match="needs an axis"):
        Granularity(block_size=4)
