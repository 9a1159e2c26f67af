"""Which of the two Lightning packages a Trainer comes from, and how to keep it quiet."""

from __future__ import annotations

import importlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnicompress.errors import UserError

_PACKAGES = ("pytorch_lightning", "lightning.pytorch")
_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric", "lightning")
_SHARDING = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy")
_OWN_BUSINESS = (
    "You're resuming from a checkpoint that ended before the epoch ended",
    "`max_epochs` was not set",
    "`configure_optimizers` must be implemented",
    "Found .* module\\(s\\) in eval mode at the start of training",
    "Trainer already configured with model summary callbacks",
    "The dirpath has changed from",
    "Checkpoint directory .* exists and is not empty",
    "The number of training batches .* is smaller than the logging interval",
    "You defined a `validation_step` but have no `val_dataloader`",
    "You passed in a `val_dataloader` but have no `validation_step`",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "The '.*' does not have many workers",
)
"""Warnings about what the evaluator itself arranges."""


class Package:
    """`pytorch_lightning` or `lightning.pytorch`: one code under two names, whose classes don't mix."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def of(cls, value: object) -> Package | None:
        """The package that `value` (an object or a class) derives from; None where it is neither."""
        for base in (value if isinstance(value, type) else type(value)).__mro__:
            for name in _PACKAGES:
                if base.__module__ == name or base.__module__.startswith(f"{name}."):
                    return cls(name)
        return None

    def get(self, path: str) -> Any:
        """The class at `path` inside the package: `callbacks.Callback`."""
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(f"{self.name}.{module}" if module else self.name), name)


def refuse_sharding(strategy: object) -> None:
    """Raise a UserError where a strategy shards parameters: masks and importance need whole tensors."""
    for base in type(strategy).__mro__:
        if base.__name__ in _SHARDING:
            raise UserError(
                f"Trainer(strategy=...) is {base.__name__}, which shards the parameters; compress on one device or "
                "with strategy='ddp', and shard the compressed model"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """No banners, and no warnings about what the evaluator itself arranges; the user's own warnings still come."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _OWN_BUSINESS:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def interrupts_pass() -> Iterator[None]:
    """A KeyboardInterrupt comes out as itself: Lightning turns it into `exit(1)` and ignores Ctrl+C from then on."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    try:
        yield
    except SystemExit as leaving:
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise leaving.__context__ from None
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
