"""Fake quantization against the formula, and the switches of a fake quantizer through checkpoints and copies."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor

from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.scheme import Granularity, Scheme


def formula(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Jacob et al. 2018, equations 1 and 12, with operands that broadcast."""
    return (torch.clamp(torch.round(x / scale) + zero_point, low, high) - zero_point) * scale


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_the_formula_per_tensor_and_per_channel(axis: int | None) -> None:
    x = numbers(4, 5, 6)
    count = () if axis is None else (x.shape[axis],)
    scale, zero_point = numbers(*count).abs() / 8 + 0.01, torch.full(count, 3, dtype=torch.int32)
    broadcast = [1, 1, 1]
    if axis is not None:
        broadcast[axis] = -1
    want = formula(x, scale.reshape(broadcast), zero_point.reshape(broadcast), 0, 15)
    torch.testing.assert_close(fake_quantize(x, scale, zero_point, 0, 15, axis), want)


@pytest.mark.parametrize(("axis", "block"), [(0, 2), (1, 4), (-1, 3), (2, 6)])
def test_the_formula_per_block(axis: int, block: int) -> None:
    x = numbers(4, 10, 6).requires_grad_()
    scheme = Scheme("int4", granularity=Granularity(axis, block))
    shape = scheme.shape(x.shape)
    scale, zero_point = numbers(*shape).abs() / 8 + 0.01, torch.ones(shape, dtype=torch.int32)
    size = x.shape[axis]

    def spread(values: Tensor) -> Tensor:
        return values.repeat_interleave(block, axis).narrow(axis, 0, size)

    found = fake_quantize(x, scale, zero_point, -8, 7, axis)
    torch.testing.assert_close(found, formula(x, spread(scale), spread(zero_point), -8, 7))
    found.sum().backward()
    inside = torch.round(x / spread(scale)) + spread(zero_point)
    assert x.grad is not None and torch.equal(x.grad, ((inside >= -8) & (inside <= 7)).float())


def test_types_stay() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x = numbers(3, 4).to(dtype)
        assert fake_quantize(x, torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), -8, 7).dtype == dtype


def test_it_simulates_when_it_is_told() -> None:
    quantizer = FakeQuantizer(Scheme("uint8"))
    x = numbers(3, 4)
    assert quantizer(x) is x
    quantizer.set_parameters(torch.tensor(0.5), torch.tensor(7))
    quantizer.simulating = True
    torch.testing.assert_close(quantizer(x), formula(x, torch.tensor(0.5), torch.tensor(7), 0, 255))
    quantizer.simulating = False
    assert quantizer(x) is x


def test_switches_survive_checkpoints_and_copies() -> None:
    quantizer = FakeQuantizer(Scheme("int8", symmetric=True, granularity=Granularity(0)), (3, 4))
    quantizer.simulating, quantizer.observing = True, False
    other = FakeQuantizer(quantizer.scheme, (3, 4))
    assert not other.simulating
    other.load_state_dict(quantizer.state_dict())
    assert other.simulating and not other.observing
    assert copy.deepcopy(other).simulating
    stored = io.BytesIO()
    torch.save(other, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    assert loaded.simulating and loaded.scheme == quantizer.scheme
    other.flags.zero_()  # as a checkpoint that is copied in place does
    assert not other.simulating


def test_a_copy_reads_its_switches_itself() -> None:
    quantizer = FakeQuantizer(Scheme("uint8"))
    quantizer.observing = True
    assert quantizer.observing  # read once: the number of writes so far is known
    quantizer.observing, quantizer.simulating = False, True
    duplicate = copy.deepcopy(quantizer)
    assert (duplicate.observing, duplicate.simulating) == (False, True)
