"""What a pruner tells of its result."""

from __future__ import annotations

from nnicompress.pruning.masks import Masks
from nnicompress.pruning.result import PrunedRow, PruningResult, Total

ROUNDED, BOUNDED = "kept groups are rounded to multiples of 4", "at most 2 of 8 groups may go"


def row(name: str, asked: int, removed: int, note: str, unit: str = "channels") -> PrunedRow:
    return PrunedRow(name, "convs", (name,), unit, 8, asked, removed, note)


def result(*rows: PrunedRow, asked: float, removed: float, unprunable: tuple[str, ...] = ()) -> PruningResult:
    return PruningResult({}, Masks({}), rows, unprunable, {"channels": Total(24, asked, removed)})


def test_a_reason_is_given_once_for_all_layers_that_share_it():
    locked = "head: 8 of 8 channels can't be pruned: it is an output of the model"
    short = result(
        row("a", 5, 4, ROUNDED),
        row("b", 3, 2, BOUNDED),
        row("c", 4, 4, ""),
        row("d", 6, 4, ROUNDED),
        row("e.weight", 6, 4, ROUNDED, "weights"),
        asked=18,
        removed=14,
        unprunable=(locked,),
    )
    assert short.reasons == (
        locked,
        f"a 4 of 5, d 4 of 6 channels: {ROUNDED}",
        f"b: 2 of 3 channels: {BOUNDED}",
        f"e.weight: 4 of 6 weights: {ROUNDED}",
    )


def test_no_reason_is_given_where_the_layers_together_lost_what_was_asked():
    # 0.24 channels of 24 are one percent: widths have steps.
    assert result(row("a", 5, 4, ROUNDED), asked=5, removed=4.77).reasons == ()
    assert len(result(row("a", 5, 4, ROUNDED), asked=5, removed=4.75).reasons) == 1
