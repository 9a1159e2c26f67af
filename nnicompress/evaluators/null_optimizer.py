"""An optimizer that moves nothing: the user's loop runs on it where only gradients are wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


class NullOptimizer(Optimizer):
    """Has a real optimizer's groups and defaults, so that schedulers can be built on it; `step` only fires hooks."""

    def __init__(self, real: Optimizer) -> None:
        super().__init__([dict(group) for group in real.param_groups], dict(real.defaults))

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Leave every parameter as it is."""
