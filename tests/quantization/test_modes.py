"""Which calls in training are which in evaluation mode, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import UserError
from nnicompress.quantization.frames import Frames
from nnicompress.quantization.modes import training_numbers
from nnicompress.quantization.record import record


class Modes(nn.Module):
    """One add in both modes; one of each mode's own in front of it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + 1.0
            x = x + 2.0
        else:
            x = x * 1.0
        return x + 4.0


class Elsewhere(nn.Module):
    """Each mode has code of its own, which makes the same calls."""

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if self.training else self.other(x)

    def one(self, x: Tensor) -> Tensor:
        return x + 1.0

    def other(self, x: Tensor) -> Tensor:
        return x + 2.0


class Loop(nn.Module):
    """The same line several times, more often in training."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3 if self.training else 2):
            x = x + 1.0
        return x + 4.0


def both(model: nn.Module) -> dict[str, object]:
    runs = [record(model, (torch.ones(1),), {}, training=training).runs for training in (False, True)]
    return dict(training_numbers(*runs))


def test_calls_are_told_by_their_place_in_the_code() -> None:
    assert both(Modes()) == {"": {"add": {2: 0}}}
    assert both(Elsewhere()) == {}
    assert both(Loop()) == {"": {"add": {0: 0, 1: 1, 3: 2}}}


def test_a_quantizer_sits_at_the_same_call_in_both_modes() -> None:
    model = Modes()
    Frames().attach(model, {"": {"add_0/output_0": lambda x: 10.0 * x}}, both(model))  # type: ignore[arg-type]
    assert [float(model.train(mode)(torch.ones(1))) for mode in (False, True)] == [50.0, 80.0]


def test_runs_that_differ_in_several_ways_are_refused() -> None:
    """The first run adds once more in training, the second one doesn't."""
    evaluation = {"block": [[("add", 7)], [("add", 7)]]}
    training = {"block": [[("add", 5), ("add", 7)], [("add", 7)]]}
    with pytest.raises(UserError, match="block runs several times, and in training its calls of add differ"):
        training_numbers(evaluation, training)
    assert training_numbers(evaluation, {"block": [training["block"][0]] * 2}) == {"block": {"add": {1: 0}}}
