"""Gives schedulers that are already built the parameter group that a compressor adds to their optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from nnicompress.evaluators.optimizers import add_group

_PER_GROUP = ("lr_lambdas", "max_lrs", "min_lrs", "base_momentums", "max_momentums")
"""What torch's schedulers hold as a list with one element a group, beside `base_lrs` and `_last_lr`."""


def without(optimizers: Iterable[Optimizer], own: frozenset[int]) -> None:
    """Take the parameters of these ids out of the user's groups."""
    if own:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]


def add_scheduled_group(
    optimizer: Optimizer, schedulers: Sequence[Any], parameters: Sequence[nn.Parameter], settings: Mapping[str, Any]
) -> None:
    """Add a group whose rate the `schedulers` of this optimizer set as they set the first group's.

    A schedule that names its own rates (`OneCycleLR(max_lr=...)`) gives them to the new group, too; one that scales
    each group's rate (`StepLR`) scales the rate that `settings` say.
    """
    before = len(optimizer.param_groups)
    add_group(optimizer, parameters, settings)
    first, added = optimizer.param_groups[0], optimizer.param_groups[-1]
    if "initial_lr" not in first:
        return  # no scheduler has touched it
    for name, value in first.items():
        added.setdefault(name, value)
    if "max_lr" in first:
        added["initial_lr"], added["lr"] = first["initial_lr"], _copy(first["lr"])
    else:
        asked, initial = float(added["lr"]), float(first["initial_lr"])
        added["initial_lr"] = asked
        added["lr"] = asked * (float(first["lr"]) / initial) if initial else asked
    for scheduler in schedulers:
        _extend(scheduler, optimizer, before, added)


def _extend(scheduler: Any, optimizer: Optimizer, before: int, group: Mapping[str, Any]) -> None:
    for inner in getattr(scheduler, "_schedulers", ()):
        _extend(inner, optimizer, before, group)
    if getattr(scheduler, "optimizer", None) is not optimizer:
        return
    for name, value in (("base_lrs", group["initial_lr"]), ("_last_lr", group["lr"])):
        found = getattr(scheduler, name, None)
        if isinstance(found, list) and len(found) == before:
            setattr(scheduler, name, [*found, _copy(value)])
    for name in _PER_GROUP:
        found = getattr(scheduler, name, None)
        if isinstance(found, list) and len(found) == before:
            setattr(scheduler, name, [*found, found[0]])


def _copy(rate: Any) -> Any:
    return rate.clone() if isinstance(rate, Tensor) else rate
