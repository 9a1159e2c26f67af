"""Every family of transformers: its channels, heads and head dimensions are removed and proven."""

from __future__ import annotations

import pytest

from nnicompress.graph import capture, find_channel_groups
from nnicompress.shrink import prove, shrink
from tests.graph.families import FAMILIES, OUTPUTS
from tests.shrink.removals import masked_copy, remove_share
from tests.zoo import perturb_norms


def check(name: str, ratio: float, inside_heads: bool = False, hidden: bool = False) -> None:
    model, example, other = FAMILIES[name]()
    perturb_norms(model)
    captured = capture(model, *example, outputs=OUTPUTS.get(name, ()))
    groups = find_channel_groups(captured, inside_heads=inside_heads, hidden=hidden)
    removal = remove_share(groups, ratio)
    masked = masked_copy(model, groups, removal)
    prove(masked, shrink(masked, groups, removal), groups, removal, [example, other])


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_the_heads_and_channels_is_removed_and_proven(name: str, hidden: bool) -> None:
    check(name, 0.5, hidden=hidden)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(("inside_heads", "ratio"), [(False, 0.3), (True, 0.5), (True, 0.3)])
@pytest.mark.parametrize("name", FAMILIES)
def test_other_shares_and_dimensions_inside_heads_are_removed_and_proven(
    name: str, inside_heads: bool, ratio: float, hidden: bool
) -> None:
    check(name, ratio, inside_heads, hidden)
