"""Points that stand for a search space: checked before the search starts, so that no hour is lost to a wrong choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, ValueType

from nnicompress.config.compose import sweep_points
from nnicompress.config.messages import explained
from nnicompress.errors import UserError
from nnicompress.sweep.settings import SearchSettings, from_overrides
from nnicompress.sweep.space import grid_values, read_space


def representative_points(
    overrides: Sequence[str], *, config_dir: Path | None = None, own: bool = True
) -> list[list[str]]:
    """The first value of every key, then each other choice, and the other end of each interval, one at a time.

    Raises:
        UserError: there is nothing to search, or the sampler of our `own` sweeper can't search it.
    """
    with explained(overrides):
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    searched = [override for override in parsed if override.is_sweep_override()]
    if own:
        _require_searchable(searched, from_overrides(overrides))
    axes = [
        _ends(override, config_dir) if override.is_sweep_override() else [override.input_line or ""]
        for override in parsed
    ]
    first = [values[0] for values in axes]
    others = [[*first[:at], value, *first[at + 1 :]] for at, values in enumerate(axes) for value in values[1:]]
    return [first, *others]


def _require_searchable(searched: Sequence[Override], settings: SearchSettings) -> None:
    if not searched:
        raise UserError(
            "nothing to search: give a key several values, as in seed=0,1 or 'optimizer.lr=interval(0.01,0.1)'"
        )
    for override in searched:
        if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
            continue  # what it stands for is not known before Hydra is asked
        for key, distribution in read_space([override]).axes.items():
            if settings.sampler == "grid" and grid_values(distribution) is None:
                text = f"{override.input_line!r} has endlessly many values"
                raise UserError(f"{text}; a grid needs {key}=range(A,B,STEP)")


def _ends(override: Override, config_dir: Path | None) -> list[str]:
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start!r}", f"{key}={value.end!r}"]
    texts = [point[0] for point in sweep_points([override.input_line or ""], config_dir=config_dir)]
    return [texts[0], texts[-1]] if override.is_range_sweep() and len(texts) > 1 else texts
