"""Ratios from measured drops, beside what is worked out by hand and found by exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nnicompress.errors import ConfigError, InputErrors
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.pruning.allocation import Unit, allocate
from nnicompress.pruning.equal_drop import at_equal_drop
from nnicompress.pruning.pruner import Pruner
from nnicompress.pruning.settings import PrunerSettings


def unit(name: str, size: int, ratio: float, **others: float) -> Unit:
    return Unit(name, np.arange(size, dtype=np.float64), ratio, **others)  # type: ignore[arg-type]


def ratios(units: list[Unit], drops: dict[str, dict[float, float]]) -> list[float]:
    return [found.ratio for found in at_equal_drop(units, [(u.name,) for u in units], drops)]


def test_straight_lines_by_hand() -> None:
    """Layer a costs 0.1 a unit of ratio, b 0.3: at the drop t they lose 10 t and 10 t / 3, together 2 * 0.4."""
    drops = {"a": {0.9: 0.09}, "b": {0.9: 0.27}}
    found = ratios([unit("a", 100, 0.4), unit("b", 100, 0.4)], drops)
    np.testing.assert_allclose(found, [0.6, 0.2], atol=1e-5)


def test_a_larger_layer_counts_more() -> None:
    """10 t * 100 + 10 t / 3 * 300 = 0.4 * 400 at t = 0.08; the cost of a group counts like its size."""
    drops = {"a": {0.9: 0.09}, "b": {0.9: 0.27}}
    np.testing.assert_allclose(ratios([unit("a", 100, 0.4), unit("b", 300, 0.4)], drops), [0.8, 0.8 / 3], atol=1e-5)
    np.testing.assert_allclose(
        ratios([unit("a", 100, 0.4), unit("b", 100, 0.4, cost=3)], drops), [0.8, 0.8 / 3], atol=1e-5
    )


def test_layers_that_cost_nothing_share_what_goes() -> None:
    found = ratios([unit(name, 64, 0.3) for name in "abc"], {"a": {0.5: 0}, "b": {0.5: -0.01}, "c": {0.5: 0.2}})
    np.testing.assert_allclose(found, [0.45, 0.45, 0.0], atol=1e-4)


def test_a_drop_below_that_of_a_smaller_ratio_is_noise() -> None:
    drops = {"a": {0.25: 0.04, 0.5: 0.01, 0.75: 0.08}, "b": {0.25: 0.04, 0.5: 0.04, 0.75: 0.08}}
    first, second = ratios([unit("a", 64, 0.4), unit("b", 64, 0.4)], drops)
    assert first == pytest.approx(second, abs=1e-9)


def test_bounds_hold_and_the_others_make_up_for_them() -> None:
    drops = {"a": {0.9: 0.09}, "b": {0.9: 0.27}}
    found = ratios([unit("a", 100, 0.4, most=50), unit("b", 100, 0.4)], drops)
    np.testing.assert_allclose(found, [0.5, 0.3], atol=1e-5)
    found = ratios([unit("a", 100, 0.4), unit("b", 100, 0.4, least=30)], drops)
    np.testing.assert_allclose(found, [0.5, 0.3], atol=1e-5)


def test_the_largest_drop_is_the_smallest_there_is() -> None:
    """Of all integer removals that meet the budget, none has a smaller largest drop; by exhaustive search."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        drops = {name: dict(zip((0.25, 0.5, 0.75), np.sort(rng.random(3)).tolist(), strict=True)) for name in "abc"}
        units = [unit(name, 8, 0.375) for name in "abc"]
        found = ratios(units, drops)

        def cost(name: str, ratio: float, drops: dict[str, dict[float, float]] = drops) -> float:
            return float(np.interp(ratio, [0, *drops[name]], [0, *drops[name].values()]))

        largest = max(cost(u.name, r) for u, r in zip(units, found, strict=True))
        whole = [counts for counts in itertools.product(range(7), repeat=3) if sum(counts) == 9]
        best = min(max(cost(u.name, c / 8) for u, c in zip(units, counts, strict=True)) for counts in whole)
        assert sum(found) * 8 == pytest.approx(9, abs=1e-6)
        assert largest <= best + 1e-5


def test_allocation_meets_the_budget_in_whole_groups() -> None:
    drops = {"a": {0.9: 0.09}, "b": {0.9: 0.27}, "c": {0.9: 0.18}}
    units = at_equal_drop([unit(name, 32, 0.5, step=4) for name in "abc"], [("a",), ("b",), ("c",)], drops)
    removed = {name: len(allotted.removed) for name, allotted in allocate(units, compete=False).items()}
    assert sum(removed.values()) == 48
    assert removed["a"] > removed["c"] > removed["b"]


def test_layers_that_lose_the_same_add_their_drops() -> None:
    drops = {"a": {0.9: 0.09}, "b": {0.9: 0.18}, "c": {0.9: 0.09}}
    found = at_equal_drop([unit("ab", 100, 0.4, cost=2), unit("c", 100, 0.4)], [("a", "b"), ("c",)], drops)
    # 0.3 and 0.1 a unit of ratio: 2 * 10 t / 3 + 10 t = 3 * 0.4 at t = 0.072
    np.testing.assert_allclose([u.ratio for u in found], [0.24, 0.72], atol=1e-5)


def test_what_was_not_measured_is_refused() -> None:
    units = [unit("conv1", 8, 0.5), unit("conv2", 8, 0.5)]
    with pytest.raises(ConfigError, match="no drop of 'conv2' was measured; did you mean 'conv1'"):
        ratios(units, {"conv1": {0.5: 0.1}})
    with pytest.raises(ConfigError, match="ask for 8 channels and at most 6 go at the largest measured ratio, 0.5"):
        ratios(units, {"conv1": {0.5: 0.1}, "conv2": {0.25: 0.1}})


TARGETS = [{"op_types": ["Linear"], "sparse_ratio": 0.5}]


def test_a_pruner_spares_the_layer_that_costs_more() -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    evaluator = TorchEvaluator(dummy_input=torch.ones(1, 8))
    drops = {"0": {"0.8": 0.08}, "2": {"0.8": 0.24}}
    allocation = {"name": "sensitivity", "drops": drops, "round_to": 1}
    result = Pruner(TARGETS, evaluator, importance="l1", allocation=allocation).compress(model)
    # At an equal drop the first loses three times as much as the second, and both together a half.
    assert {row.name: row.removed for row in result.rows} == {"0": 48, "2": 16}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"allocation": "sensitivity"}, "sensitivity needs drops"),
        ({"allocation": {"name": "global", "drops": {"a": {0.5: 0.1}}}}, "global takes no drops"),
        ({"allocation": {"name": "sensitivity", "drops": {"a": {1.5: 0.1}}}}, "a.1.5: a ratio is in"),
        ({"allocation": {"name": "sensitivity", "drops": {"a": {0.5: 0.1}}}, "granularity": "element"}, "channel"),
    ],
)
def test_wrong_settings(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(InputErrors, match=reason):
        PrunerSettings.from_targets(TARGETS, **settings)
