"""What a LightningModule logs, as the mapping with the key `default` that compressors and reports read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nnicompress import exchange
from nnicompress.errors import UserError, did_you_mean

_LOADER = re.compile(r"/dataloader_idx_\d+$")
_VALIDATION = re.compile(r"^(validation|valid|val)(?![a-z])")


def averaged(logged: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Values by name; what several loaders log under one name (`acc/dataloader_idx_0`) is averaged over them.

    So is what several processes have measured, each on its share of the data; where Lightning has done that already
    (`sync_dist=True`, a torchmetrics metric), all have the same number.
    """
    values: dict[str, list[float]] = {}
    for one in logged:
        for name, value in one.items():
            values.setdefault(_LOADER.sub("", name), []).append(float(value))
    return exchange.means({name: sum(found) / len(found) for name, found in values.items()})


def of_validation(trainer: Any) -> dict[str, Any]:
    """What the validation that ends now has logged; `Trainer.callback_metrics` holds the training's values, too."""
    names = {value.meta.name for value in trainer.fit_loop.epoch_loop.val_loop._results.values()}
    names |= {f"{name}_epoch" for name in names} | {f"{name}_step" for name in names}
    return {name: value for name, value in trainer.callback_metrics.items() if _LOADER.sub("", name) in names}


def with_default(values: Mapping[str, float], metric: str, split: str = "validation") -> dict[str, float]:
    """`values` with the key `default`, which is the one called `metric`.

    In a test, `test_acc` stands for `val_acc` where only that is logged.

    Raises:
        UserError: nothing of this name is logged.
    """
    names = [metric]
    if split == "test":
        names.append(_VALIDATION.sub("test", metric))
    for name in names:
        if name in values:
            return {"default": values[name], **values}
    step = f"{split}_step"
    if not values:
        raise UserError(f"the LightningModule logs nothing in {split}; call self.log({metric!r}, ...) in its {step}")
    near = did_you_mean(metric, values)
    raise UserError(
        f"metric={metric!r} is not logged in {split}{near}{'' if near else ';'} it logs "
        f"{', '.join(map(repr, sorted(values)))}"
    )
