"""Learned scales: forward as any fake quantization, gradients by the papers' formulas and by numerical differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.learned import LearnedQuantizer, lsq_plus_weight_scale, lsq_scale
from nnicompress.quantization.scheme import Granularity, Scheme

SYMMETRIC = Scheme("int4", symmetric=True, full_range=True)


def ready(quantizer: LearnedQuantizer, scale: Tensor, zero_point: Tensor | None = None) -> LearnedQuantizer:
    zero_point = quantizer.zero_point.detach() if zero_point is None else zero_point
    quantizer.set_parameters(scale, zero_point)
    quantizer.simulating = True
    return quantizer


def test_gradient_of_the_scale_by_hand() -> None:
    # Qn = -8, Qp = 7, s = 0.5: x/s is 0.6, -3.2, 20, -20; the third and fourth are clamped.
    x = torch.tensor([[0.3, -1.6, 10.0, -10.0]], requires_grad=True)
    quantizer = ready(LearnedQuantizer(SYMMETRIC, x.shape), torch.tensor(0.5))
    y = quantizer(x)
    assert y.tolist() == [[0.5, -1.5, 3.5, -4.0]]
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    y.backward(upstream)
    assert x.grad is not None and x.grad.tolist() == [[1.0, 2.0, 0.0, 0.0]]
    by_hand = 1 * (1 - 0.6) + 2 * (-3 + 3.2) + 3 * 7 + 4 * -8
    assert quantizer.scale.grad is not None
    assert quantizer.scale.grad.item() == pytest.approx(by_hand / math.sqrt(4 * 7), rel=1e-5)


def test_the_gradients_scale_does_not_count_the_batch() -> None:
    x = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    gradients = []
    for copies, batched in ((1, True), (5, True), (5, False)):
        quantizer = ready(LearnedQuantizer(SYMMETRIC, (), batched=batched), torch.tensor(0.2))
        quantizer(x.repeat(copies, 1)).sum().backward()
        assert quantizer.scale.grad is not None
        gradients.append(quantizer.scale.grad.item())
    assert gradients[1] == pytest.approx(5 * gradients[0], rel=1e-5)
    assert gradients[2] == pytest.approx(gradients[1] / math.sqrt(5), rel=1e-5)


def test_one_scale_a_channel_is_each_channel_alone() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    scheme = Scheme("int4", symmetric=True, full_range=True, granularity=Granularity(0))
    scales = torch.tensor([0.1, 0.3, 0.05])
    together = ready(LearnedQuantizer(scheme, x.shape, batched=False), scales)
    together(x).square().sum().backward()
    for channel in range(3):
        alone = ready(LearnedQuantizer(SYMMETRIC, (8,), batched=False), scales[channel])
        alone(x[channel]).square().sum().backward()
        assert together.scale.grad is not None and alone.scale.grad is not None
        assert together.scale.grad[channel].item() == pytest.approx(alone.scale.grad.item(), rel=1e-5)


def test_gradients_where_everything_is_clamped_are_those_of_autograd() -> None:
    # Clamped, the output is (q - z) * s with q fixed: differentiable in both, with no rounding to pass.
    x = torch.tensor([[50.0, -50.0, 60.0]])
    scheme = Scheme("uint4")
    quantizer = ready(LearnedQuantizer(scheme, x.shape, learn_zero_point=True), torch.tensor(0.5), torch.tensor(6.0))
    weights = torch.tensor([[1.0, 2.0, -4.0]])
    (quantizer(x) * weights).sum().backward()
    scale, zero = torch.tensor(0.5, requires_grad=True), torch.tensor(6.0, requires_grad=True)
    integers = torch.tensor([[15.0, 0.0, 15.0]])
    ((integers - zero) * scale * weights).sum().backward()
    factor = 1 / math.sqrt(3 * 15)
    assert quantizer.scale.grad is not None and scale.grad is not None
    assert isinstance(quantizer.zero_point, torch.nn.Parameter)
    assert quantizer.zero_point.grad is not None and zero.grad is not None
    assert quantizer.scale.grad.item() == pytest.approx(scale.grad.item() * factor, rel=1e-5)
    assert quantizer.zero_point.grad.item() == pytest.approx(zero.grad.item() * factor, rel=1e-5)


def test_the_zero_point_is_rounded_where_it_is_used() -> None:
    quantizer = ready(
        LearnedQuantizer(Scheme("uint8"), (), learn_zero_point=True), torch.tensor(0.1), torch.tensor(6.4)
    )
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    scale, zero_point = quantizer.quantization_parameters()
    assert zero_point.item() == 6 and zero_point.dtype == torch.int32
    assert torch.equal(quantizer(x), fake_quantize(x, scale, zero_point, 0, 255))


def test_a_scale_that_a_step_carried_past_zero_counts_by_its_size() -> None:
    quantizer = ready(LearnedQuantizer(SYMMETRIC), torch.tensor(-0.5))
    assert quantizer.quantization_parameters()[0].item() == 0.5
    assert quantizer(torch.tensor([0.6])).item() == 0.5


def test_first_scales() -> None:
    assert lsq_scale(torch.tensor(0.3), 7).item() == pytest.approx(2 * 0.3 / math.sqrt(7))
    assert lsq_plus_weight_scale(torch.tensor(-0.1), torch.tensor(0.2), 4).item() == pytest.approx(0.7 / 8)


def test_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="not one a block"):
        LearnedQuantizer(Scheme("int4", granularity=Granularity(1, 4)), (4, 8))
