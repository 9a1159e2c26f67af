"""Search spaces in Hydra's grammar as Optuna's distributions, and trials written back as overrides."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from nnicompress.errors import ConfigError
from nnicompress.sweep.space import Space, grid_values, read_space


def space_of(*overrides: str) -> Space:
    return read_space(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2", CategoricalDistribution(["1", "2"])),
        ("choice(resnet20,'a b')", CategoricalDistribution(["resnet20", "a\\ b"])),
        ("[1,2],[3]", CategoricalDistribution(["[1,2]", "[3]"])),
        ("range(2,9,3)", IntDistribution(2, 8, step=3)),
        ("range(9,1,-3)", IntDistribution(3, 9, step=3)),
        ("range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("interval(0.1,0.5)", FloatDistribution(0.1, 0.5)),
        ("interval(1,5)", FloatDistribution(1.0, 5.0)),
        ("int(interval(4,64))", IntDistribution(4, 64)),
        ("tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
    ],
)
def test_each_kind_of_sweep_is_a_distribution(text: str, expected: object) -> None:
    assert space_of(f"a.b={text}").axes == {"a.b": expected}


def test_a_trial_is_written_as_overrides_that_hydra_reads_the_same() -> None:
    space = space_of("recipe=mine", "seed=1,2", "+new=interval(0,1)", "n=range(1,4)", "~stages.export", "s='x y',z")
    params = {"seed": "2", "+new": 1e-05, "n": 3, "s": "'x y'"}
    texts = space.overrides(params)
    assert texts == ["recipe=mine", "~stages.export", "seed=2", "+new=1e-05", "n=3", "s='x y'"]
    values = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(texts)}
    assert values == {"recipe": "mine", "stages.export": None, "seed": 2, "new": 1e-05, "n": 3, "s": "x y"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("interval(2,1)", "interval(2, 1) is empty"),
        ("interval(1,1)", "interval(1, 1) is empty"),
        ("tag(log,interval(0,1))", "a logarithmic interval starts above 0, not at 0"),
        ("tag(lgo,interval(1,2))", "the tag 'lgo' means nothing here; tag(log, interval(...)) does"),
        ("range(5,1)", "the range has no values"),
    ],
)
def test_what_can_t_be_searched_is_said(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(f"a.b={text}")
    assert str(caught.value) == f"a.b: can't be searched over: {reason} (command line)"


def test_values_of_a_grid() -> None:
    axes = space_of("a=x,y", "b=range(0,0.3,0.1)", "c=range(1,6,2)", "d=interval(0,1)").axes
    assert [grid_values(axis) for axis in axes.values()] == [["x", "y"], [0.0, 0.1, 0.2], [1, 3, 5], None]
