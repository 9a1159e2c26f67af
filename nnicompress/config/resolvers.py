"""Interpolations of our own: what a recipe takes from a file. Resolved values go into keys and manifest, not names."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

SENSITIVE, DROPS = "nnicompress.sensitive", "nnicompress.drops"


def sensitive(file: str, max_drop: float | None = None) -> list[str]:
    """`${nnicompress.sensitive:FILE}`: the layers that an analysis found too sensitive to compress.

    `${nnicompress.sensitive:FILE,0.05}` judges its measurements by another `max_drop`.
    """
    from nnicompress.errors import UserError
    from nnicompress.sensitivity.result import read

    if max_drop is not None and (isinstance(max_drop, bool) or not isinstance(max_drop, int | float)):
        raise UserError(f"max_drop is a number, not {max_drop!r}")
    return read(Path(file).expanduser()).exclusions(max_drop)


def drops(file: str) -> dict[str, dict[str, float]]:
    """`${nnicompress.drops:FILE}`: what each layer costs at each ratio, for the allocation `sensitivity`."""
    from nnicompress.sensitivity.result import read

    return read(Path(file).expanduser()).curves()


def register() -> None:
    """Make them known to OmegaConf, in this process; under names that begin with `nnicompress.`."""
    OmegaConf.register_new_resolver(SENSITIVE, sensitive, replace=True)
    OmegaConf.register_new_resolver(DROPS, drops, replace=True)
