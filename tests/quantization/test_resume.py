"""A training that was cut off and goes on."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nnicompress.errors import UserError
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.evaluators.training_step import SupervisedStep
from nnicompress.events import Event, StepDone
from nnicompress.quantization.attach import without_quantizers
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.trace import trace
from tests.quantization.simple import FOUR_BITS, METHODS, batches, make_evaluator, make_net


class Killed(Exception):
    pass


def resumable(method: str, stop_at: int | None, state: Any = None) -> tuple[dict[str, Tensor], Any]:
    """The trained weights and the ranges; or, killed after `stop_at` steps, what was saved there."""
    model = make_net()
    saved: dict[str, Any] = {}

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == stop_at:
            saved["weights"] = {k: v.clone() for k, v in without_quantizers(model.state_dict()).items()}
            saved["quantizer"], saved["evaluator"] = quantizer.state_dict(), evaluator.state_dict()
            raise Killed

    def loader(seed: int) -> Any:
        samples = [pair for x, y in batches() for pair in zip(x, y, strict=True)]
        return DataLoader(samples, 8, shuffle=True, generator=torch.Generator().manual_seed(seed))

    evaluator = TorchEvaluator(
        TrainingLoop(loader, seed=3, validate_every=0),
        trace(torch.optim.SGD)(model.parameters(), lr=0.05, momentum=0.9),
        SupervisedStep(nn.CrossEntropyLoss()),
        listener=listen,
    )
    schedule = {"freeze_batch_norm_at": 6}
    if METHODS[method].get("method", "observed") == "observed":
        schedule["observe_until"] = 7
    quantizer = Quantizer([FOUR_BITS], evaluator, calibration_steps=3, schedule=schedule, **METHODS[method])
    torch.manual_seed(5)
    if state is not None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        model.load_state_dict(state["weights"])
        quantizer.load_state_dict(state["quantizer"])
        evaluator.load_state_dict(state["evaluator"])
    try:
        result = quantizer.compress(model, max_steps=9)
    except Killed:
        return {}, saved
    ranges = {f"{place}.{kind}": getattr(tensor, kind) for place, tensor in result.tensors.items()
              for kind in ("scale", "zero_point")}  # fmt: skip
    return {**model.state_dict(), **ranges}, None


@pytest.mark.parametrize("stop_at", [4, 7])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_ends_with_the_same_bits(method: str, stop_at: int) -> None:
    want, _ = resumable(method, None)
    _, state = resumable(method, stop_at)
    assert state["quantizer"]["step"] == stop_at
    found, _ = resumable(method, None, state)
    assert found.keys() == want.keys() and len(want) > 10
    for name, tensor in want.items():
        assert torch.equal(found[name], tensor), name


def test_a_state_of_other_settings_is_refused() -> None:
    model = make_net()
    quantizer = Quantizer([{"op_types": ["Linear"]}], make_evaluator(model), calibration_steps=2)
    quantizer.compress(model, max_steps=2)
    other = Quantizer([{}], make_evaluator(model), calibration_steps=2)
    other.load_state_dict(quantizer.state_dict())
    with pytest.raises(UserError, match="the quantizer's state is for other settings or another model"):
        other.compress(model, max_steps=2)
