"""Builds all optimizers and schedulers of an evaluator for whatever model is bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nnicompress.errors import UserError
from nnicompress.evaluators.null_optimizer import NullOptimizer
from nnicompress.evaluators.optimizers import OptimizerRecord, OptimizerSpec, add_group, check_every_parameter_once
from nnicompress.evaluators.scheduling import StepCount, build_scheduler, record_schedulers
from nnicompress.trace import Traced

OptimizerGiven = Traced | OptimizerSpec
OwnGroup = tuple[tuple[tuple[str, nn.Parameter], ...], Mapping[str, Any]]
"""A compressor's own parameters, by name, and the settings of their group."""


class Rebuilder:
    """How the user's optimizers and schedulers are built, and in which form their loop expects them."""

    def __init__(
        self,
        optimizers: OptimizerGiven | Sequence[OptimizerGiven] | None,
        lr_schedulers: Traced | Sequence[Traced] | None,
    ) -> None:
        self._single_optimizer = not isinstance(optimizers, (list, tuple))
        self._single_scheduler = not isinstance(lr_schedulers, (list, tuple))
        given, schedulers = _as_list(optimizers), _as_list(lr_schedulers)
        if schedulers and not given:
            raise UserError("lr_schedulers are given without optimizers, whose rates they would set")
        self.optimizers = tuple(OptimizerRecord(optimizer, index) for index, optimizer in enumerate(given))
        self.schedulers = record_schedulers(schedulers, given)

    def check(self, model: nn.Module, own: Sequence[OwnGroup]) -> None:
        """Raise a UserError unless each trainable parameter of `model` is in exactly one group, or a compressor's."""
        if self.optimizers:
            check_every_parameter_once(model, self.optimizers, _ids(own))

    def build(
        self, model: nn.Module, own: Sequence[OwnGroup], count: StepCount, *, dry: bool = False
    ) -> tuple[list[Optimizer], list[Any]]:
        """Optimizers and schedulers for `model`; `dry` ones move nothing.

        A compressor's groups come last in the first optimizer, and before the schedulers, which set their rates too.
        """
        self.check(model, own)
        optimizers = [record.build(model, _ids(own)) for record in self.optimizers]
        for named, settings in own:
            add_group(optimizers[0], [parameter for _, parameter in named], settings)
        if dry:
            optimizers = [NullOptimizer(optimizer) for optimizer in optimizers]
        return optimizers, [build_scheduler(r.traced, optimizers[r.optimizer], count) for r in self.schedulers]

    def in_given_form(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Any]) -> tuple[Any, Any]:
        """What the user's loop is given: one where one was given, a list where several were."""
        one = schedulers[0] if schedulers else None
        return (
            optimizers[0] if self._single_optimizer else list(optimizers),
            one if self._single_scheduler else list(schedulers),
        )


def _ids(own: Sequence[OwnGroup]) -> frozenset[int]:
    return frozenset(id(parameter) for named, _ in own for _, parameter in named)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
