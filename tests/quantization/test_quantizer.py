"""The quantizer from end to end: what it finds, what it leaves behind, and what it needs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import UserError
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.quantization.attach import simulated
from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.trace import trace
from tests.quantization.simple import (
    FOUR_BITS,
    METHODS,
    batches,
    compressed,
    loop,
    make_evaluator,
    make_net,
    training_step,
)


def test_check_changes_nothing_and_says_what_would_be_quantized() -> None:
    model = make_net()
    before = copy.deepcopy(model.state_dict())
    plan = Quantizer([{}], make_evaluator(model)).check(model)
    assert plan.layers == ["stem", "block", "head"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_on_the_model(method: str) -> None:
    model = make_net()
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    parameters = [id(parameter) for parameter in model.parameters()]
    result = compressed(model, **METHODS[method])
    assert list(model.state_dict()) == keys and [type(module) for module in model.modules()] == classes
    assert [id(parameter) for parameter in model.parameters()] == parameters
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert {"stem/weight", "block/weight", "head/weight"} <= result.tensors.keys()


@pytest.mark.parametrize("method", METHODS)
def test_the_result_simulates_the_trained_model_bit_for_bit(method: str) -> None:
    model, x = make_net(), batches()[0][0]
    outputs: list[Tensor] = []

    def watched(model: nn.Module, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
        loop(model, optimizers, step, schedulers, max_steps, max_epochs)
        with torch.no_grad():
            outputs.append(model.eval()(x))  # as it is simulated when the training ends

    quantizer = Quantizer([FOUR_BITS], make_evaluator(model, watched), calibration_steps=3, **METHODS[method])
    result = quantizer.compress(model, max_steps=8)
    model.eval()
    with torch.no_grad():
        plain = model(x)
        with simulated(model, result):
            assert torch.equal(model(x), outputs[-1])
        assert torch.equal(model(x), plain) and not torch.equal(plain, outputs[-1])


def test_simulation_is_the_formula() -> None:
    """A network of one layer, quantized by hand."""
    model = nn.Sequential(nn.Linear(4, 3))
    nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def one(model: nn.Module, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
        optimizers.zero_grad()
        step(x, model).backward()
        optimizers.step()

    def loss(batch: Any, model: nn.Module) -> Tensor:
        return model(batch).square().mean()

    evaluator = TorchEvaluator(one, trace(torch.optim.SGD)(model.parameters(), lr=0.1), loss)
    result = Quantizer([{}], evaluator, observer="min_max", calibration_steps=1, trains=False).compress(model)
    weight, data = result.tensors["0/weight"], result.tensors["0/input_0"]
    torch.testing.assert_close(weight.scale, model[0].weight.detach().abs().amax(dim=1) / 127)
    torch.testing.assert_close(data.scale, (x.max() - x.min()) / 255)
    torch.testing.assert_close(result.tensors["0/bias"].scale, data.scale * weight.scale)
    w = fake_quantize(model[0].weight, weight.scale, weight.zero_point, -127, 127, 0)
    a = fake_quantize(x, data.scale, data.zero_point, 0, 255)
    step = data.scale * weight.scale
    b = torch.round(model[0].bias / step) * step
    with simulated(model, result):
        torch.testing.assert_close(model(x), a @ w.t() + b)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_models(method: str) -> None:
    model = make_net().to(torch.bfloat16)

    def step(batch: Any, model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0].to(torch.bfloat16)).float(), batch[1])

    evaluator = TorchEvaluator(loop, trace(torch.optim.SGD)(model.parameters(), lr=0.05), step)
    result = Quantizer([FOUR_BITS], evaluator, calibration_steps=2, **METHODS[method]).compress(model, max_steps=4)
    for place, tensor in result.tensors.items():
        assert tensor.scale.dtype == torch.float32 and torch.isfinite(tensor.scale).all(), place
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_a_simulated_model_can_be_copied() -> None:
    model = make_net()
    quantizer = Quantizer([FOUR_BITS], make_evaluator(model), calibration_steps=2)
    result = quantizer.compress(model, max_steps=2)
    model.eval()
    x = batches()[0][0]
    with torch.no_grad(), simulated(model, result):
        want = model(x)
        other = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(other(x), want)


def test_an_error_in_training_leaves_the_model_as_it_was() -> None:
    model = make_net()
    keys = list(model.state_dict())

    def broken(batch: Any, model: nn.Module) -> Tensor:
        if any("quantizers" in key for key in model.state_dict()):
            raise ZeroDivisionError
        return training_step(batch, model)

    evaluator = TorchEvaluator(
        loop, trace(torch.optim.SGD)(model.parameters(), lr=0.05), broken, dummy_input=batches()[0][0]
    )
    with pytest.raises(ZeroDivisionError):
        Quantizer([{}], evaluator).compress(model, max_steps=2)
    assert list(model.state_dict()) == keys and type(model.stem) is nn.Conv2d


def test_what_the_evaluator_lacks_is_named() -> None:
    with pytest.raises(UserError, match="the observed quantizer needs .*to follow the model's values"):
        Quantizer([{}], TorchEvaluator()).compress(make_net())
    with pytest.raises(UserError, match="settings say trains: false"):
        Quantizer([{}], make_evaluator(make_net()), trains=False).compress(make_net(), max_steps=3)
