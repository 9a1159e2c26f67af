"""Allocation: budgets met, bounds kept, the best-scored kept, against brute force and by property."""

import itertools

import numpy as np
import pytest

from nnicompress.pruning.allocation import Unit, allocate, normalize, rounding_step


def cost_removed(units, allotments):
    return sum(unit.cost * len(allotments[unit.name].removed) for unit in units)


def ask(units):
    return sum(unit.cost * unit.ratio * unit.size for unit in units)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(16, 2), (32, 4), (64, 8), (128, 16), (512, 16), (20, 2), (24, 2), (100, 8), (7, 1), (1, 1)],
)
def test_automatic_steps_are_powers_of_two_near_an_eighth(channels, expected):
    assert rounding_step("auto", channels, 1) == expected


def test_steps_count_wide_groups_in_channels():
    assert rounding_step(16, 64, 4) == 4  # 64 groups of 4 channels: 4 groups are 16 channels
    assert rounding_step(8, 64, 16) == 1
    assert rounding_step(8, 64, 3) == 8  # 24 channels is the least common multiple
    assert rounding_step("auto", 32, 4) == 4
    assert rounding_step("auto", 8, 49) == 1


def test_uniform_40_percent_of_16_32_64_is_40_percent_in_all():
    """Rounding up to multiples of 8 makes 29 % of it; each to its nearest step 37.5 %."""
    rng = np.random.default_rng(0)
    units = [Unit(f"{size}", rng.random(size), 0.4, step=rounding_step("auto", size, 1)) for size in (16, 32, 64) * 3]
    units = [Unit(f"{i}", unit.scores, 0.4, step=unit.step) for i, unit in enumerate(units)]
    allotments = allocate(units, compete=False)
    removed = cost_removed(units, allotments)
    assert abs(removed - 0.4 * 336) <= 4
    for unit in units:
        kept = unit.size - len(allotments[unit.name].removed)
        assert kept % unit.step == 0
        assert abs(kept - 0.6 * unit.size) < unit.step


def test_global_removes_the_lowest_scores_of_all():
    units = [Unit("a", np.array([1.0, 5, 2, 9]), 0.5), Unit("b", np.array([3.0, 4, 8, 7]), 0.5)]
    allotments = allocate(units, compete=True)
    assert allotments["a"].removed.tolist() == [0, 2]
    assert allotments["b"].removed.tolist() == [0, 1]


def test_global_counts_a_shared_width_by_its_cost():
    units = [Unit("shared", np.array([1.0, 10, 10, 10]), 0.5, cost=4), Unit("own", np.arange(2.0, 6), 0.5)]
    allotments = allocate(units, compete=True)
    assert (len(allotments["shared"].removed), len(allotments["own"].removed)) == (2, 2)  # asked: 10 of 20
    assert cost_removed(units, allotments) == 10


def random_units(rng, *, steps=True):
    units = []
    for i in range(int(rng.integers(1, 7))):
        size = int(rng.integers(2, 65))
        least, most = sorted(int(v) for v in rng.integers(0, size, 2))
        bounded = rng.random() < 0.3
        units.append(
            Unit(
                f"u{i}",
                rng.random(size),
                ratio=float(rng.uniform(0.05, 0.9)),
                cost=int(rng.integers(1, 5)),
                step=rounding_step("auto", size, 1) if steps else 1,
                least=least if bounded else 0,
                most=most if bounded else None,
            )
        )
    return units


@pytest.mark.parametrize("compete", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_properties(seed, compete):
    rng = np.random.default_rng(seed)
    units = random_units(rng)
    if compete:
        ratio = units[0].ratio
        units = [Unit(u.name, u.scores, ratio, u.cost, u.step, u.least, u.most) for u in units]
    allotments = allocate(units, compete=compete)
    reachable_low = reachable_high = 0.0
    asked = 0.0
    for unit in units:
        removed = allotments[unit.name].removed
        count, limit = len(removed), unit.limit
        assert min(unit.least, limit) <= count <= limit
        assert count < unit.size
        assert (np.diff(removed) > 0).all()
        allowed = [c for c in range(min(unit.least, limit), limit + 1) if c == 0 or (unit.size - c) % unit.step == 0]
        allowed = allowed or list(range(min(unit.least, limit), limit + 1))
        assert count in allowed
        # The best-scored are kept.
        kept = np.setdiff1d(np.arange(unit.size), removed)
        assert not count or unit.scores[removed].max() <= unit.scores[kept].min()
        if compete:
            reachable_low += unit.cost * allowed[0]
            reachable_high += unit.cost * allowed[-1]
            asked += unit.cost * unit.ratio * unit.size
        else:
            own = min(max(unit.ratio * unit.size, min(unit.least, limit)), limit)
            reachable_low += unit.cost * max((c for c in allowed if c <= own + 1e-9), default=allowed[0])
            reachable_high += unit.cost * min((c for c in allowed if c >= own - 1e-9), default=allowed[-1])
            asked += unit.cost * own
    # Half of the largest step that any unit can make, wherever the bounds let the ask be reached at all.
    asked = min(max(asked, reachable_low), reachable_high)
    largest = max(unit.cost * max(unit.step, unit.size % unit.step + unit.step - 1) for unit in units)
    assert abs(cost_removed(units, allotments) - asked) <= largest / 2 + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_global_without_rounding_is_the_brute_force_optimum(seed):
    """Equal costs, tiny sizes: of all removals of the asked size, the one that loses least score."""
    rng = np.random.default_rng(seed)
    units = [Unit(f"u{i}", rng.random(4), 0.5, most=3) for i in range(3)]
    allotments = allocate(units, compete=True)
    lost = sum(unit.scores[allotments[unit.name].removed].sum() for unit in units)
    everything = [(unit.name, i, unit.scores[i]) for unit in units for i in range(4)]
    best = min(
        sum(score for _, _, score in chosen)
        for chosen in itertools.combinations(everything, 6)
        if all(sum(name == unit.name for name, _, _ in chosen) <= 3 for unit in units)
    )
    assert lost == pytest.approx(best)


def test_a_whole_width_is_never_removed():
    units = [Unit("worst", np.zeros(4), 0.9), Unit("best", np.ones(4), 0.9)]
    allotments = allocate(units, compete=True)
    assert len(allotments["worst"].removed) == 3


def test_bounds_win_over_rounding_and_are_named():
    scores = np.arange(64.0)
    bounded = allocate([Unit("a", scores, 0.5, step=8, most=20)], compete=False)["a"]
    assert len(bounded.removed) == 16
    assert bounded.note == "at most 20 of 64 groups may go, kept groups are rounded to multiples of 8"
    narrow = allocate([Unit("a", scores, 0.5, step=8, least=3, most=5)], compete=False)["a"]
    assert len(narrow.removed) == 5
    assert narrow.note == "at most 5 of 64 groups may go"


def test_what_was_removed_comes_first_again():
    scores = np.array([5.0, -np.inf, 4, -np.inf])
    allotment = allocate([Unit("a", scores, 0.75, least=2)], compete=True)["a"]
    assert allotment.removed.tolist() == [1, 2, 3]


def test_normalisation_looks_at_the_living_only():
    scores, alive = np.array([-np.inf, 2.0, 6.0]), np.array([False, True, True])
    assert normalize(scores, "mean", alive).tolist() == [-np.inf, 0.5, 1.5]
    assert normalize(scores, "max", alive)[2] == 1
    assert normalize(np.zeros(3), "mean", np.ones(3, dtype=bool)).tolist() == [0, 0, 0]
