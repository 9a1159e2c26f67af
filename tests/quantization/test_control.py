"""The search for the fewest parts in float, against trying all subsets."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from nnicompress.events import Measured
from nnicompress.quantization.control import Bound, InFloat, Outcome, Trials, curve, keep_accuracy

PARTS = tuple("abcdefgh")


def searched(harms: dict[str, float], max_drop: float, parts: tuple[str, ...] = PARTS) -> tuple[Outcome, Trials]:
    """Of a metric that falls by the sum of the harms of what is quantized, from 0.9."""
    trials: Trials = {}

    def measure(in_float: InFloat) -> float:
        return 0.9 - sum(harm for part, harm in harms.items() if part not in in_float)

    return keep_accuracy(parts, Bound(0.9, max_drop), measure, trials), trials


def test_exactly_the_two_parts_that_hurt_stay_in_float() -> None:
    outcome, trials = searched({"c": 0.2, "g": 0.1}, 0.01)
    assert outcome == Outcome(("c", "g"), 0.9, True)
    # All and none, each of 8 alone, bisection over 8, and each of two in integers again; all but one is known already.
    assert len(trials) <= 2 + 8 + 3 + 2
    assert list(curve(trials))[0][0] == () and list(curve(trials))[-1][0] == PARTS


def test_harms_that_add_up_are_found_as_by_all_subsets() -> None:
    for seed in range(20):
        draw = random.Random(seed)
        harms = {part: draw.choice([0.0, 0.01, 0.02, 0.05]) for part in PARTS}
        outcome, trials = searched(harms, 0.035)
        fewest = next(
            count
            for count in range(len(PARTS) + 1)
            if any(
                sum(h for p, h in harms.items() if p not in chosen) <= 0.035 + 1e-9
                for chosen in itertools.combinations(PARTS, count)
            )
        )
        assert outcome.met and len(outcome.in_float) == fewest, seed
        assert outcome.metric == trials[outcome.in_float]


def test_refining_finds_what_a_prefix_does_not() -> None:
    """Alone `a` hurts most; but where `b` is in float, `a` does no harm."""

    def measure(in_float: InFloat) -> float:
        quantized = set(PARTS) - set(in_float)
        return 0.9 - 0.05 * ("b" in quantized) - 0.2 * (quantized == {"a"})

    outcome = keep_accuracy(PARTS, Bound(0.9, 0.01), measure, {})
    assert outcome == Outcome(("b",), 0.9, True)


def test_what_is_good_enough_is_measured_once_and_what_nothing_helps_twice() -> None:
    outcome, trials = searched({"a": 0.01}, 0.01)  # 0.9 - 0.89 is a little more than 0.01
    assert outcome == Outcome((), 0.89, True) and list(trials) == [()]
    trials = {}
    outcome = keep_accuracy(PARTS, Bound(0.9, 0.01), lambda in_float: 0.8 + 0.01 * len(in_float), trials)
    assert outcome == Outcome(PARTS, 0.88, False) and list(trials) == [(), PARTS]
    outcome = keep_accuracy(PARTS, Bound(0.9, 0.01), lambda in_float: 0.8 - 0.01 * len(in_float), {})
    assert outcome == Outcome((), 0.8, False), "the best that there is"


@pytest.mark.parametrize(
    ("mode", "metric", "holds"),
    [("max", 0.95, False), ("max", 1.1, True), ("min", 1.1, True), ("min", 1.11, False), ("max", math.nan, False)],
)
def test_the_bound_in_either_direction(mode: str, metric: float, holds: bool) -> None:
    bound = Bound(1.0, 0.01 if mode == "max" else 0.1, mode)
    assert bound.holds(metric) == holds


def test_a_metric_that_is_no_number_harms_most() -> None:
    def measure(in_float: InFloat) -> float:
        return 0.9 if "d" in in_float else math.nan

    assert keep_accuracy(PARTS, Bound(0.9, 0.0), measure, {}) == Outcome(("d",), 0.9, True)


def test_trials_are_not_measured_again_and_progress_ends_where_it_says() -> None:
    expected, trials = searched({"c": 0.2, "g": 0.1}, 0.01)
    for known in range(len(trials)):
        again: Trials = dict(itertools.islice(trials.items(), known))
        added: list[int] = []
        events: list[Measured] = []
        outcome = keep_accuracy(
            PARTS,
            Bound(0.9, 0.01),
            lambda in_float: trials[in_float],
            again,
            measured=lambda again=again, added=added: added.append(len(again)),
            listener=events.append,
        )
        assert outcome == expected and again == trials and added == list(range(known + 1, len(trials) + 1))
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert all(event.number <= event.total for event in events)
