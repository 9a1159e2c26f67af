"""The simulation over a training: its schedule, its gradients, and forwards that run twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnicompress.errors import UserError
from nnicompress.evaluators.contract import StepEvent
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.quantization.fixed import GradientQuantizer, quantize_gradient
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.trace import trace
from tests.quantization.simple import (
    BATCHES,
    METHODS,
    Net,
    One,
    batches,
    compressed,
    loop,
    make_evaluator,
    make_net,
    train_one,
    training_step,
)


def trained_by(quantizer: Quantizer, model: nn.Module, max_steps: int) -> list[tuple[int, bool, bool, float]]:
    """Step, switches (simulating, observing) and scale of the stem's input, after each number of steps from 0 on."""
    seen: list[tuple[int, bool, bool, float]] = []

    def look(step: int) -> None:
        tensors = quantizer.state_dict()["tensors"]
        observing, simulating = tensors["stem/input_0:flags"].tolist()
        seen.append((step, simulating, observing, tensors["stem/input_0:scale"].item()))

    def before_step(event: StepEvent) -> None:
        look(event.step - 1)

    handle = quantizer.evaluator.before_step(before_step)
    quantizer.compress(model, max_steps=max_steps)
    handle.remove()
    look(max_steps)
    return seen[-max_steps - 1 :]  # the calibration's steps come first


def test_the_schedule() -> None:
    model = make_net()
    schedule = {"simulate_from": 2, "observe_until": 4, "freeze_batch_norm_at": 3}
    quantizer = Quantizer([{}], make_evaluator(model), calibration_steps=2, schedule=schedule)
    statistics: list[Tensor] = []
    handle = quantizer.evaluator.after_step(lambda event: statistics.append(model.norm.running_mean.clone()))
    seen = trained_by(quantizer, model, max_steps=6)
    handle.remove()
    assert [(s, sim, obs) for s, sim, obs, _ in seen] == [
        (0, False, True), (1, False, True), (2, True, True), (3, True, True), (4, True, False), (5, True, False),
        (6, True, False),
    ]  # fmt: skip
    scales = [scale for *_, scale in seen]
    assert len(set(scales[:5])) == 5 and len(set(scales[4:])) == 1  # ranges follow the values until step 4
    trained = statistics[-6:]  # the calibration's steps come first
    assert not torch.equal(trained[1], trained[2]) and all(torch.equal(s, trained[2]) for s in trained[3:])
    assert model.norm.training


def test_ranges_follow_the_training_from_a_step_on() -> None:
    model = make_net()
    schedule = {"observe_from": 2, "observe_until": 5}
    settings = {"observer": "moving_average", "schedule": schedule}
    quantizer = Quantizer([{}], make_evaluator(model), calibration_steps=2, **settings)
    seen = trained_by(quantizer, model, max_steps=6)
    assert [obs for _, _, obs, _ in seen] == [False, False, True, True, True, False, False]
    scales = [scale for *_, scale in seen]
    assert len(set(scales[:3])) == 1 and len(set(scales[2:6])) == 4 and scales[5] == scales[6]
    x = batches()[2][0]  # of the first step whose range counts, a tenth of the moving average
    calibrated = [(x.min().item(), x.max().item()) for x, _ in batches()[:2]]
    low, high = (a + 0.1 * (b - a) for a, b in zip(*calibrated, strict=True))
    low, high = low + 0.1 * (x.min().item() - low), high + 0.1 * (x.max().item() - high)
    assert scales[3] == pytest.approx((high - low) / 255, rel=1e-5)


def test_a_training_that_never_simulates_is_told() -> None:
    model, notes = make_net(), []
    evaluator = make_evaluator(model)
    quantizer = Quantizer([{}], evaluator, notes.append, calibration_steps=1, schedule={"simulate_from": BATCHES})
    with pytest.raises(UserError, match="schedule.simulate_from: simulated from step 6, a training of 6 steps never"):
        quantizer.compress(model, max_steps=BATCHES)
    quantizer.compress(model, max_epochs=1)
    (told,) = [note.text for note in notes if "nothing was simulated" in getattr(note, "text", "")]
    assert told == "nothing was simulated: simulate_from is 6, and the training ended after 6 steps"


def test_dorefa_trains_with_gradients_of_few_bits() -> None:
    """A bias sums the gradients of its layer's output, each quantized by equation 12 with the noise of its step."""
    model = One()
    before = model.layer.bias.detach().clone()
    train_one(model, 1.0, 2, method="dorefa", gradient_bits=2)
    moved = torch.zeros(3)
    for step in range(2):
        quantizer = GradientQuantizer(2)
        quantizer.begin(step)
        moved += quantize_gradient(model.upstream, 3, quantizer.noise(model.upstream)).sum(dim=0)
    torch.testing.assert_close(before - model.layer.bias.detach(), moved)
    assert not torch.allclose(moved, 2 * model.upstream.sum(dim=0), atol=0.1)


class Checkpointed(Net):
    """Computes its middle again in the backward pass."""

    def middle(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False) if self.training else self.block(x)


@pytest.mark.parametrize("method", ["observed", "lsq"])
def test_gradient_checkpointing_changes_nothing(method: str) -> None:
    want, got = make_net(), make_net(Checkpointed)
    one, other = compressed(want, **METHODS[method]), compressed(got, **METHODS[method])
    for place, tensor in one.tensors.items():
        assert torch.equal(other.tensors[place].scale, tensor.scale), place
    for name, value in want.state_dict().items():
        assert torch.equal(got.state_dict()[name], value), name


def test_what_is_computed_again_for_gradients_is_not_observed() -> None:
    """Between forward and backward a bias grows, so that a recomputed forward has larger values than the step's own."""
    scales = []
    for cls in (Net, Checkpointed):
        model = make_net(cls)

        def step(batch: Any, model: Any) -> Tensor:
            loss = training_step(batch, model)
            model.block.bias.data += 3.0
            return loss

        evaluator = TorchEvaluator(loop, trace(torch.optim.SGD)(model.parameters(), lr=0.0), step)
        result = Quantizer([{}], evaluator, calibration_steps=1, observer="min_max").compress(model, max_steps=2)
        scales.append(result.tensors["block/output_0"].scale)
    assert torch.equal(*scales)
