"""The optimizer of a Trainer: its own parameter groups on the bound model, or the one that the user described."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nnicompress.errors import UserError
from nnicompress.evaluators.null_optimizer import NullOptimizer
from nnicompress.evaluators.optimizers import add_group, check_optimizer_class
from nnicompress.evaluators.rebuild import OptimizerGiven, OwnGroup, Rebuilder
from nnicompress.evaluators.scheduling import build_scheduler
from nnicompress.trace import Traced


class TrainerOptimizer:
    """How the optimizer and the scheduler of each training are built."""

    def __init__(self, optimizer: Any, lr_scheduler: Any) -> None:
        """Both as the user described them; None is the Trainer's own.

        Raises:
            UserError: something built, several of them, or an optimizer whose steps can't be seen.
        """
        given = optimizer if isinstance(optimizer, (list, tuple)) else [] if optimizer is None else [optimizer]
        schedulers = lr_scheduler if isinstance(lr_scheduler, (list, tuple)) else [lr_scheduler]
        for what, values in (("optimizers", given), ("lr_schedulers", schedulers)):
            if len(values) > 1:
                raise UserError(f"{what}: a Trainer has one, and {len(values)} are given")
        self._given: list[OptimizerGiven] = list(given)
        if not given and schedulers[0] is not None:
            raise UserError(
                "lr_schedulers: it would set the rate of an optimizer that the Trainer builds; give optimizers, too, "
                "or choose it by TrainingArguments(lr_scheduler_type=...)"
            )
        self._rebuilder = Rebuilder(self._given, [s for s in schedulers if s is not None])
        self._optimizer_alone = Rebuilder(self._given, None)

    @property
    def is_given(self) -> bool:
        """Whether the user described an optimizer."""
        return bool(self._given)

    def check(self, model: nn.Module, own: Sequence[OwnGroup]) -> None:
        """Raise a UserError unless each trainable parameter is in exactly one group of a described optimizer."""
        self._rebuilder.check(model, own)

    def build(
        self, model: nn.Module, own: Sequence[OwnGroup], trainers: Callable[[], Optimizer], *, dry: bool
    ) -> Optimizer:
        """An optimizer for `model`, with the compressors' `own` groups last; a `dry` one moves nothing.

        Args:
            model: the bound model.
            own: the compressors' own parameters.
            trainers: the Trainer's way to build one.
            dry: build one that moves nothing.

        Raises:
            UserError: a trainable parameter is in no group, or in several.
        """
        if self._given:
            built, _ = self._optimizer_alone.build(model, own, lambda: None, dry=dry)
            return built[0]
        optimizer = _called(trainers)
        check_optimizer_class(Traced(type(optimizer)))
        ids = frozenset(id(parameter) for named, _ in own for _, parameter in named)
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
        _check_once(model, optimizer, ids)
        for named, settings in own:
            add_group(optimizer, [parameter for _, parameter in named], settings)
        return NullOptimizer(optimizer) if dry else optimizer

    def scheduler(self, optimizer: Optimizer, steps: int, trainers: Callable[[], Any]) -> Any:
        """The scheduler for so many optimizer steps; the Trainer's own (`lr_scheduler_type`) where none is given."""
        records = self._rebuilder.schedulers
        return build_scheduler(records[0].traced, optimizer, lambda: steps) if records else trainers()


def _called(build: Callable[[], Optimizer]) -> Optimizer:
    try:
        optimizer = build()
    except (ValueError, TypeError) as error:
        raise UserError(f"the Trainer can't build its optimizer: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"the Trainer's create_optimizer returned {type(optimizer).__name__}, which is no Optimizer")
    return optimizer


def _check_once(model: nn.Module, optimizer: Optimizer, own: frozenset[int]) -> None:
    counts = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    names = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own and not counts[id(p)]]
    if names:
        shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise UserError(
            f"the Trainer's {type(optimizer).__name__} lacks {len(names)} trainable parameters of the bound model: "
            f"{shown}; build it of self.model's parameters, or freeze them with requires_grad_(False)"
        )
