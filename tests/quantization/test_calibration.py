"""What a calibration finds, and what it says of values without a range."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import JobError
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.quantization.attach import simulated
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.trace import trace
from tests.quantization.simple import BATCHES, One, batches, compressed, loop, make_net, train_one, training_step


def test_calibration_without_training_moves_no_weight_and_quantizes_well() -> None:
    model = make_net()
    compressed(model, max_steps=12)  # some training, so that there is something to keep
    before = copy.deepcopy(model.state_dict())
    result = compressed(model, trains=False, target={}, calibration_steps=BATCHES)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    model.eval()
    x = torch.cat([x for x, _ in batches()])
    with torch.no_grad():
        plain = model(x)
        with simulated(model, result):
            quantized = model(x)
    noise, signal = (quantized - plain).pow(2).mean(), plain.pow(2).mean()
    assert noise < 1e-3 * signal  # 8 bits: better than 30 dB
    assert not torch.equal(quantized, plain)


@pytest.mark.parametrize("observer", ["min_max", "moving_average", "histogram", "percentile", "mse"])
def test_ranges_by_every_observer_are_within_the_values(observer: str) -> None:
    model, of_percentile = make_net(), {"percentile": 99.0} if observer == "percentile" else {}
    result = compressed(
        model, trains=False, target={}, calibration_steps=BATCHES, observer={"name": observer, **of_percentile}
    )
    x = torch.stack([x for x, _ in batches()])
    low, high = x.min().item(), x.max().item()
    data = result.tensors["stem/input_0"]
    found = (-data.zero_point * data.scale).item(), ((255 - data.zero_point) * data.scale).item()
    step = data.scale.item()
    if observer == "min_max":
        assert found == pytest.approx((low, high), abs=step)
    elif observer == "moving_average":
        want_low, want_high = x[0].min().item(), x[0].max().item()
        for batch in x[1:]:
            want_low += 0.1 * (batch.min().item() - want_low)
            want_high += 0.1 * (batch.max().item() - want_high)
        assert found == pytest.approx((want_low, want_high), abs=step)
    elif observer == "percentile":
        ends = torch.quantile(x.flatten(), torch.tensor([0.005, 0.995])).tolist()
        assert found == pytest.approx(ends, abs=(high - low) / 2048 + step)
    else:
        assert low - step <= found[0] < 0 < found[1] <= high + step


@pytest.mark.parametrize("method", ["observed", "lsq"])
def test_activations_with_one_scale_a_channel(method: str) -> None:
    """By the formula, one channel at a time, at any batch size."""
    model = make_net()
    target = {"target_settings": {"_input_": {"granularity": "channel"}}}
    settings = {"backend": "none", "observer": "min_max"} if method == "observed" else {"backend": "none"}
    result = compressed(model, target=target, method=method, **settings, max_steps=2)
    data = result.tensors["stem/input_0"]
    assert data.scale.shape == (2,) and "head/bias" not in result.tensors
    x = batches()[0][0][:3]
    if method == "observed":
        seen = torch.stack([x for x, _ in batches()[:3]])  # in the calibration, and two of them in the training
        low, high = seen.amin(dim=(0, 1, 3, 4)), seen.amax(dim=(0, 1, 3, 4))
        torch.testing.assert_close(data.scale, (high - low) / 255)
    model.eval()
    with torch.no_grad(), simulated(model, result):
        assert torch.isfinite(model(x)).all()


def test_lsqs_first_scales_are_the_papers() -> None:
    """2 mean|v| / sqrt(Qp), section 2.1; without a learning rate they stay."""
    model, x = One(), batches()[0][0][:, 0, 0, :4]
    result = train_one(model, 0.0, 1, method="lsq")
    weight, data = result.tensors["layer/weight"], result.tensors["layer/input_0"]
    torch.testing.assert_close(weight.scale, 2 * model.layer.weight.detach().abs().mean(dim=1) / 7**0.5)
    torch.testing.assert_close(data.scale, 2 * x.abs().mean() / 127**0.5)  # of 256 integers half lie above zero
    assert data.zero_point == 128 and float(x.min()) < 0


class Spoiled(nn.Module):
    """Two layers, and between them what a calibration may meet."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.between = between
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x.mean(dim=(1, 2)))))


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda x: x - torch.inf, "/sub_0/output_0 has no range: the calibration found infinity or NaN"),
        (lambda x: x / 0 - x / 0, "/sub_0/output_0.* NaN"),
    ],
)
@pytest.mark.parametrize("method", ["observed", "lsq"])
def test_values_without_a_range_are_one_line(between: Any, message: str, method: str) -> None:
    model = Spoiled(between)
    evaluator = TorchEvaluator(loop, trace(torch.optim.SGD)(model.parameters(), lr=0.1), training_step)
    quantizer = Quantizer([{}], evaluator, method=method, trains=method == "lsq")
    with pytest.raises(JobError, match=message):
        quantizer.compress(model, **({"max_steps": 1} if method == "lsq" else {}))


def test_a_training_step_that_calls_only_a_part_is_one_line() -> None:
    model = make_net()
    evaluator = TorchEvaluator(
        loop,
        trace(torch.optim.SGD)(model.parameters(), lr=0.1),
        lambda batch, model: model.stem(batch[0]).square().mean(),
        dummy_input=batches()[0][0],
    )
    for correct in (False, True):
        quantizer = Quantizer([{}], evaluator, trains=False, bias_correction=correct)
        with pytest.raises(
            JobError, match="the calibration found no numbers at .*training_step doesn't call the model"
        ):
            quantizer.compress(model)


def test_a_model_that_is_frozen_is_calibrated_as_one_that_is_not() -> None:
    model = make_net()
    expected = compressed(model, trains=False, target={})
    found = compressed(model.requires_grad_(False), trains=False, target={})
    assert found.tensors.keys() == expected.tensors.keys()
    for place, tensor in found.tensors.items():
        assert torch.equal(tensor.scale, expected.tensors[place].scale), place
    assert not any(parameter.requires_grad for parameter in model.parameters())
