"""The fewest parts of a model to leave in float, so that quantization costs no more of a metric than is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from dataclasses import dataclass

from nnicompress.events import Listener, Measured, silent

InFloat = tuple[str, ...]
"""Parts in float, in the model's order."""
Trials = MutableMapping[InFloat, float]
"""What was measured: the metric with these parts in float."""


@dataclass(frozen=True)
class Bound:
    """At most `max_drop` below `baseline` where `mode` is `max`, at most so much above it where it is `min`."""

    baseline: float
    max_drop: float
    mode: str = "max"

    def drop(self, metric: float) -> float:
        """How much worse than the baseline; infinite for a metric that is no number."""
        drop = self.baseline - metric if self.mode == "max" else metric - self.baseline
        return math.inf if math.isnan(drop) else drop

    def holds(self, metric: float) -> bool:
        """Whether the metric is good enough."""
        drop = self.drop(metric)  # 0.95 - 0.94 is a little more than 0.01
        return drop <= self.max_drop or math.isclose(drop, self.max_drop, rel_tol=1e-9)


@dataclass(frozen=True)
class Outcome:
    """The parts that stay in float, the metric with them there, and whether the bound holds."""

    in_float: InFloat
    metric: float
    met: bool


def keep_accuracy(
    parts: Sequence[str],
    bound: Bound,
    measure: Callable[[InFloat], float],
    trials: Trials,
    *,
    measured: Callable[[], None] = lambda: None,
    listener: Listener = silent,
) -> Outcome:
    """Return parts to float, the most harmful first, until the bound holds, and then as many to integers as it allows.

    1. Everything quantized: where the bound holds, that is all. Everything in float: where it doesn't, nothing helps.
    2. Each part quantized alone: what it costs is its harm.
    3. Bisection: the fewest of the most harmful parts that must be in float.
    4. Each of those, the least harmful first, in integers again: it stays there where the bound still holds.

    The outcome is the best of all that was measured, with nothing assumed of how harms add up: the fewest parts in
    float with which the bound holds (of equals the best metric); where it never does, the best metric. `trials` are not
    measured again, and `measured` is called after each that is added, for whoever stores them.
    """
    search = _Search(parts, bound, measure, trials, measured, listener)
    search.run()
    return search.best()


class _Search:
    def __init__(
        self,
        parts: Sequence[str],
        bound: Bound,
        measure: Callable[[InFloat], float],
        trials: Trials,
        measured: Callable[[], None],
        listener: Listener,
    ) -> None:
        self.parts, self.bound, self.measure, self.trials = tuple(parts), bound, measure, trials
        self.measured, self.listener = measured, listener
        self.count = 0

    def run(self) -> None:
        if self.holds(()) or not self.holds(self.parts):
            return
        worst = sorted(self.parts, key=lambda part: -self.bound.drop(self.metric(set(self.parts) - {part})))
        too_few, enough = 0, len(worst)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self.holds(worst[:middle]):
                enough = middle
            else:
                too_few = middle
        kept = worst[:enough]
        for part in reversed(worst[:enough]):
            fewer = [other for other in kept if other != part]
            if self.holds(fewer):
                kept = fewer

    def metric(self, in_float: Collection[str]) -> float:
        key = tuple(part for part in self.parts if part in in_float)
        if key not in self.trials:
            self.trials[key] = self.measure(key)
            self.measured()
        self.count += 1
        text = f"{len(key)} of {len(self.parts)} in float: {self.trials[key]:.4g}"
        self.listener(Measured(self.count, self.most, text))
        return self.trials[key]

    @property
    def most(self) -> int:
        """So many measurements at most, as far as is known: a search that is over after two is not longer."""
        n = len(self.parts)
        return self.count if self.count <= 2 else max(self.count, 2 + 2 * n + n.bit_length())

    def holds(self, in_float: Collection[str]) -> bool:
        return self.bound.holds(self.metric(in_float))

    def best(self) -> Outcome:
        good = [in_float for in_float, metric in self.trials.items() if self.bound.holds(metric)]
        if good:
            chosen = min(good, key=lambda in_float: (len(in_float), self.bound.drop(self.trials[in_float])))
        else:
            chosen = min(self.trials, key=lambda in_float: (self.bound.drop(self.trials[in_float]), len(in_float)))
        return Outcome(chosen, self.trials[chosen], bool(good))


def curve(trials: Trials) -> Iterator[tuple[InFloat, float]]:
    """All that was measured, from all in integers to all in float."""
    yield from sorted(trials.items(), key=lambda trial: len(trial[0]))
