"""Warm-up schedules against their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD

from nnicompress.errors import UserError
from nnicompress.evaluators.schedulers import constant_warmup, cosine_warmup, linear_warmup
from nnicompress.events import StepDone
from nnicompress.trace import trace
from tests.evaluators.cases import make_evaluator, make_model


def rates(scheduler: Callable[..., Any], total_steps: int, **settings: Any) -> list[float]:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    schedule = scheduler(optimizer, total_steps=total_steps, **settings)
    found = []
    for _ in range(total_steps):
        found.append(optimizer.param_groups[0]["lr"] / 0.2)
        optimizer.step()
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"] / 0.2]


def test_each_rises_to_the_rate_and_decays_in_its_way() -> None:
    rise = [1 / 5, 2 / 5, 3 / 5, 4 / 5]
    progress = [step / 16 for step in range(17)]
    assert rates(constant_warmup, 20, warmup_fraction=0.2) == pytest.approx(rise + [1.0] * 17)
    assert rates(linear_warmup, 20, warmup_steps=4) == pytest.approx(rise + [1 - p for p in progress])
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * p)) / 2 for p in progress]
    assert rates(cosine_warmup, 20, warmup_steps=4, min_ratio=0.1) == pytest.approx(rise + cosine)
    assert rates(linear_warmup, 4, warmup_steps=0, min_ratio=0.5) == pytest.approx([1.0, 0.875, 0.75, 0.625, 0.5])
    assert rates(constant_warmup, 2, warmup_steps=2) == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_a_warmup_longer_than_the_training_is_told() -> None:
    with pytest.raises(UserError, match=r"warmup_steps 30 is outside \[0, 20\], the steps of this training"):
        rates(cosine_warmup, 20, warmup_steps=30)
    with pytest.raises(UserError, match=r"warmup_fraction 1\.5 is outside \[0, 1\]"):
        rates(linear_warmup, 20, warmup_fraction=1.5)


def test_the_evaluator_fills_in_the_steps_of_the_training() -> None:
    model, found = make_model(), list[float]()
    evaluator = make_evaluator(
        model,
        lr_schedulers=trace(cosine_warmup)(warmup_steps=2),
        listener=lambda event: found.append(event.learning_rate / 0.1) if isinstance(event, StepDone) else None,
    )
    with evaluator.bound(model):
        evaluator.train(max_steps=9)
    assert found == pytest.approx(rates(cosine_warmup, 9, warmup_steps=2)[:-1])
