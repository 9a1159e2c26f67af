"""Latency of several models beside each other: rounds in turn, in one process and one runtime; median and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nnicompress.evaluators.contract import ModelInput

Clock = Callable[[], float]
Call = Callable[[], object]

FEWEST_REPEATS = 5


@dataclass(frozen=True)
class Latency:
    """Seconds of one call: the median, the quartiles around it, and how many calls they come from."""

    median: float
    low: float
    high: float
    repeats: int


def measure_calls(
    calls: Mapping[str, Call], *, warmup: int, repeats: int, seconds: float, clock: Clock = time.perf_counter
) -> dict[str, Latency]:
    """Time `calls` in rounds, each round in another order, so that a slow spell of the machine meets all alike.

    Args:
        calls: what to time, by name; a call returns when its work is done (on an accelerator it synchronises).
        warmup: untimed rounds before.
        repeats: at most so many timed rounds.
        seconds: budget of the timed rounds together; a round starts while it lasts, and at least
            `FEWEST_REPEATS` rounds are run (or `repeats`, if that is less).
    """
    names = list(calls)
    for _ in range(warmup):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in names}
    started = clock()
    for turn in range(repeats):
        if turn >= FEWEST_REPEATS and clock() - started >= seconds:
            break
        # Rotated, so that none always runs first in a round (first touch, frequency ramps).
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            begin = clock()
            calls[name]()
            times[name].append(clock() - begin)
    return {name: summarise(values) for name, values in times.items()}


def summarise(times: Sequence[float]) -> Latency:
    """Median and quartiles (linear interpolation, as NumPy's default) of at least one time."""
    if len(times) == 1:
        return Latency(times[0], times[0], times[0], 1)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, low, high, len(times))


def forward_call(model: nn.Module, inputs: ModelInput) -> Call:
    """One forward pass of `model` on `inputs`, in inference mode, that returns when the device is done.

    The model's training mode is the caller's business: it must be in evaluation mode.
    """
    args, kwargs = inputs
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    synchronise = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type)

    def call() -> None:
        with torch.inference_mode():
            model(*args, **kwargs)
        if synchronise is not None:
            synchronise()

    return call
