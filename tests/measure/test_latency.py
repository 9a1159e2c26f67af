"""Latency on a clock that the test turns, and on models of known cost."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from nnicompress.measure.latency import FEWEST_REPEATS, forward_call, measure_calls, summarise


class Clock:
    """Time moves only when a call spends some."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, cost: Callable[[float], float]) -> Callable[[], None]:
        def run() -> None:
            self.order.append(name)
            self.now += cost(self.now)

        return run


def test_rounds_are_interleaved_and_rotated() -> None:
    clock = Clock()
    calls = {name: clock.call(name, lambda now: 1.0) for name in "abc"}
    measure_calls(calls, warmup=1, repeats=4, seconds=1e9, clock=clock)
    assert "".join(clock.order) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_a_slow_spell_meets_all_models_alike() -> None:
    def seconds(now: float) -> float:
        return 10.0 if now < 250 else 1.0

    def calls(clock: Clock) -> dict[str, Callable[[], None]]:
        return {"one": clock.call("one", seconds), "half": clock.call("half", lambda now: seconds(now) / 2)}

    def measure(calls: dict[str, Callable[[], None]], clock: Clock) -> dict[str, float]:
        found = measure_calls(calls, warmup=0, repeats=40, seconds=1e9, clock=clock)
        return {name: latency.median for name, latency in found.items()}

    clock = Clock()
    together = measure(calls(clock), clock)
    assert together["one"] / together["half"] == pytest.approx(2)
    clock = Clock()
    one, half = (measure({name: call}, clock)[name] for name, call in calls(clock).items())
    assert one / half == pytest.approx(20), "one model after the other is fooled by the spell"


def test_repeats_adapt_to_the_budget() -> None:
    def rounds(cost: float, seconds: float, repeats: int = 100) -> int:
        clock = Clock()
        calls = {"a": clock.call("a", lambda now: cost), "b": clock.call("b", lambda now: cost)}
        return measure_calls(calls, warmup=0, repeats=repeats, seconds=seconds, clock=clock)["a"].repeats

    assert rounds(0.01, seconds=0.199) == 10
    assert rounds(0.0001, seconds=10) == 100
    assert rounds(100, seconds=1) == FEWEST_REPEATS
    assert rounds(100, seconds=1, repeats=3) == 3


def test_median_and_quartiles_are_numpys() -> None:
    values = [0.3, 0.1, 0.7, 0.2, 0.4, 0.9, 0.8]
    found = summarise(values)
    low, median, high = np.percentile(values, [25, 50, 75])
    assert (found.low, found.median, found.high) == pytest.approx((low, median, high))
    assert summarise([0.5]).median == 0.5


def test_a_model_of_sixteen_times_the_work_is_slower() -> None:
    large, small = (nn.Linear(size, size).eval() for size in (1024, 256))
    calls = {
        "large": forward_call(large, ((torch.randn(64, 1024),), {})),
        "small": forward_call(small, ((torch.randn(64, 256),), {})),
    }
    found = measure_calls(calls, warmup=3, repeats=20, seconds=5)
    assert found["large"].median > 3 * found["small"].median
    assert found["large"].low <= found["large"].median <= found["large"].high
