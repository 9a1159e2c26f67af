"""Averaged copies of the model that the user's callbacks keep (SWA, EMA)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


def averaged_copies(callbacks: Iterable[Any], module: nn.Module, model: nn.Module) -> Iterator[nn.Module]:
    """The copies of `model` inside the copies of the LightningModule `module` that callbacks hold.

    Masks hold for them, too: what was averaged before a weight was masked comes back with the average.
    """
    path = next(name for name, part in module.named_modules() if part is model)
    for callback in callbacks:
        for value in vars(callback).values():
            copy = getattr(value, "module", None) if _is_averaged_model(value) else value
            if isinstance(copy, nn.Module) and type(copy) is type(module) and copy is not module:
                yield copy.get_submodule(path)


def restart_swa(trainer: Any, module: Any, swa: type) -> None:
    """Have SWA take up its schedule where a fit goes on inside an epoch; it does so only when an epoch begins."""
    for callback in trainer.callbacks:
        if isinstance(callback, swa):
            callback.on_train_epoch_start(trainer, module)  # type: ignore[attr-defined]


def _is_averaged_model(value: Any) -> bool:
    return isinstance(value, nn.Module) and hasattr(value, "n_averaged")
