"""DoReFa and binary networks against the papers' formulas and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.fixed import (
    BinaryActivations,
    BinaryWeights,
    DoReFaActivations,
    DoReFaWeights,
    GradientQuantizer,
    quantize_gradient,
)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def quantize_k(r: Tensor, bits: int) -> Tensor:
    """Equation 5 of DoReFa."""
    levels = 2**bits - 1
    return torch.round(levels * r) / levels


@pytest.mark.parametrize("bits", [2, 3, 7])
def test_dorefa_weights(bits: int) -> None:
    w = numbers(4, 9).requires_grad_()
    quantizer = DoReFaWeights(bits)
    found = quantizer.simulate(w)
    squashed = torch.tanh(w)
    torch.testing.assert_close(found, 2 * quantize_k(squashed / (2 * squashed.abs().max()) + 0.5, bits) - 1)
    assert len(found.unique()) <= 2**bits
    found.sum().backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, ((1 - squashed**2) / squashed.abs().max()).detach())
    # What is left in the model is simulated by the scheme alone, bit by bit.
    scheme, (scale, zero_point) = quantizer.scheme, quantizer.quantization_parameters()
    assert scheme.bits == bits + 1
    left = found.detach()
    assert torch.equal(fake_quantize(left, scale, zero_point, scheme.quant_min, scheme.quant_max), left)


def test_dorefa_activations() -> None:
    x = (2 * numbers(5, 5)).requires_grad_()
    quantizer = DoReFaActivations(3)
    found = quantizer.simulate(x)
    torch.testing.assert_close(found, quantize_k(x.clamp(0, 1), 3))
    found.sum().backward()
    assert x.grad is not None
    inside = (torch.round(x * 7) >= 0) & (torch.round(x * 7) <= 7)
    assert torch.equal(x.grad, inside.float()) and 0 < inside.sum() < 25


def test_dorefa_gradients() -> None:
    gradient, noise = numbers(3, 4), torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) - 0.5
    found = quantize_gradient(gradient, 15, noise)
    for row in range(3):
        largest = gradient[row].abs().max()
        unit = (gradient[row] / (2 * largest) + 0.5 + noise[row] / 15).clamp(0, 1)
        torch.testing.assert_close(found[row], 2 * largest * (quantize_k(unit, 4) - 0.5))


def test_dorefa_gradients_are_right_on_average() -> None:
    x = numbers(2, 6).requires_grad_()
    upstream = numbers(2, 6) + 0.1
    total = torch.zeros(2, 6)
    quantizer = GradientQuantizer(2)
    for step in range(800):
        x.grad = None
        quantizer.begin(step)
        y = quantizer(x)
        assert torch.equal(y, x)
        y.backward(upstream)
        assert x.grad is not None
        total += x.grad
    # One draw errs by at most a step (2 max|g| / 3), the mean of 800 by its 28th part; four deviations.
    step = 2 * upstream.abs().amax(dim=1, keepdim=True) / 3
    inner = upstream.abs() < 0.8 * upstream.abs().amax(dim=1, keepdim=True)
    assert ((total / 800 - upstream).abs() <= 4 * 0.5 * step / 28)[inner].all()


def test_a_steps_noise_is_its_own_whatever_was_drawn_before() -> None:
    like = torch.zeros(3, 4)
    one, other = GradientQuantizer(4), GradientQuantizer(4)
    one.noise(like)
    torch.manual_seed(9)
    for quantizer in (one, other):
        quantizer.begin(5)
    first = one.noise(like)
    assert torch.equal(first, other.noise(like)) and not torch.equal(first, one.noise(like))
    assert not torch.equal(first, GradientQuantizer(4, seed=1).noise(like))


@pytest.mark.parametrize("quantizer", [BinaryWeights(), BinaryActivations()])
def test_binary(quantizer: BinaryWeights) -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0], requires_grad=True)
    found = quantizer.simulate(x)
    assert found.tolist() == [-1, -1, 1, 1, 1, 1]
    found.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 1, 0]
