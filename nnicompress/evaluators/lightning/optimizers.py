"""What `configure_optimizers` gives inside a fit: the recipe's or the module's own, checked and completed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from nnicompress.errors import UserError
from nnicompress.evaluators.lightning.groups import add_scheduled_group, without
from nnicompress.evaluators.null_optimizer import NullOptimizer
from nnicompress.evaluators.optimizers import check_optimizer_class
from nnicompress.evaluators.rebuild import OwnGroup, Rebuilder
from nnicompress.trace import Traced


class ClosureNullOptimizer(NullOptimizer):
    """Moves nothing; `step` calls the closure, in which Lightning runs forward and backward."""

    def __init__(self, real: Optimizer) -> None:
        super().__init__(real)
        self.param_groups = real.param_groups  # whose rates the schedulers set

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Leave every parameter as it is."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()


class OptimizerSetup:
    """Stands in for `configure_optimizers` of one fit; `optimizers` are then the ones that step."""

    def __init__(
        self,
        rebuilder: Rebuilder,
        interval: str,
        metric: str,
        own: Sequence[OwnGroup],
        *,
        dry: bool,
        on_built: Callable[[list[Optimizer]], None],
    ) -> None:
        """Say what to build.

        Args:
            rebuilder: the recipe's; without optimizers in it the module is asked.
            interval: `step` or `epoch`, after which the recipe's schedulers step.
            metric: what a `ReduceLROnPlateau` of the recipe follows.
            own: the compressors' parameters.
            dry: the optimizers move nothing.
            on_built: given the optimizers that will step, before the first step.
        """
        self.rebuilder, self.interval, self.metric = rebuilder, interval, metric
        self.own, self.dry, self.on_built = own, dry, on_built

    def __call__(self, module: Any, model: nn.Module, original: Callable[[], Any]) -> Any:
        """What Lightning is given for the LightningModule `module` around `model`."""
        given = self._of_recipe(module, model) if self.rebuilder.optimizers else self._of_module(module, original)
        optimizers = _optimizers_in(given)
        if module.automatic_optimization and len(optimizers) > 1:
            raise UserError(
                f"{len(optimizers)} optimizers, and {type(module).__name__} uses automatic optimization, which takes "
                "one; set self.automatic_optimization = False in it and step them in training_step"
            )
        check_every_parameter_once(module, optimizers, self._own_ids())
        if self.dry:
            nulls = {id(real): ClosureNullOptimizer(real) for real in optimizers}
            for scheduler in _schedulers_in(given):
                _follow(scheduler, nulls)
            given = _with(given, nulls)
            optimizers = list(nulls.values())
        self.on_built(optimizers)
        return given

    def _own_ids(self) -> frozenset[int]:
        return frozenset(id(parameter) for named, _ in self.own for _, parameter in named)

    def _of_recipe(self, module: Any, model: nn.Module) -> Any:
        optimizers, schedulers = self.rebuilder.build(model, self.own, lambda: self._scheduler_steps(module.trainer))
        configs = [
            {"scheduler": scheduler, "interval": self.interval, "monitor": self.metric} for scheduler in schedulers
        ]
        return optimizers, configs

    def _scheduler_steps(self, trainer: Any) -> int | None:
        steps: float = trainer.estimated_stepping_batches
        batches: float = trainer.num_training_batches
        if math.isinf(steps) or (self.interval == "epoch" and math.isinf(batches)):
            raise UserError(
                "the scheduler needs the number of steps, and the training has no end that is known: give max_steps, "
                "or max_epochs and loaders with a length, or pass it total_steps"
            )
        if self.interval == "step":
            return int(steps)
        num_epochs: int = math.ceil(steps / math.ceil(batches / trainer.accumulate_grad_batches))
        return num_epochs

    def _of_module(self, module: Any, original: Callable[[], Any]) -> Any:
        name = type(module).__name__
        given = original()
        if given is None:
            raise UserError(
                f"{name}.configure_optimizers returns None, so nothing would be trained; return an optimizer, or give "
                "the evaluator optimizers=nnicompress.trace(SGD)(lr=0.1)"
            )
        optimizers = _optimizers_in(given)
        if not optimizers:
            raise UserError(f"{name}.configure_optimizers returns {type(given).__name__} without a torch optimizer")
        for optimizer in optimizers:
            check_optimizer_class(Traced(type(optimizer)))
        schedulers = _schedulers_in(given)
        without(optimizers, self._own_ids())
        for named, settings in self.own:
            add_scheduled_group(optimizers[0], schedulers, [parameter for _, parameter in named], settings)
        return given


def check_every_parameter_once(module: nn.Module, optimizers: Sequence[Optimizer], own: frozenset[int]) -> None:
    """Every trainable parameter of `module` is in exactly one group of one optimizer.

    Raises:
        UserError: names the parameters at fault.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    seen: dict[int, str] = {}
    for number, optimizer in enumerate(optimizers):
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            here = f"{type(optimizer).__name__} (optimizer {number})"
            if id(parameter) in seen and id(parameter) not in own:
                raise UserError(
                    f"configure_optimizers: parameter {names.get(id(parameter), '?')!r} is in {seen[id(parameter)]} "
                    f"and in {here}; each belongs to one group"
                )
            seen[id(parameter)] = here
    left = [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) not in seen and id(parameter) not in own
    ]
    if left:
        shown = ", ".join(map(repr, left[:3])) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        strangers = sum(key not in names and key not in own for key in seen)
        why = (
            f"; the optimizers hold {strangers} parameters that are not the model's: build them in "
            "configure_optimizers from self.parameters(), not from what __init__ kept"
            if strangers
            else "; give them to one, or freeze them with requires_grad_(False)"
        )
        raise UserError(
            f"configure_optimizers: {len(left)} trainable parameter{'s are' if len(left) > 1 else ' is'} in no "
            f"optimizer: {shown}{why}"
        )


def _leaves(given: Any) -> Iterator[Any]:
    """What the mappings, lists and tuples of `configure_optimizers` hold; of a LightningOptimizer the inner one."""
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, (list, tuple)):
        for item in given:
            yield from _leaves(item)
    else:
        yield getattr(given, "_optimizer", given)


def _optimizers_in(given: Any) -> list[Optimizer]:
    """Each once, in order."""
    return list(dict.fromkeys(leaf for leaf in _leaves(given) if isinstance(leaf, Optimizer)))


def _schedulers_in(given: Any) -> list[Any]:
    """Whatever steps an optimizer's rates; a scheduler needn't derive from torch's."""
    leaves = [leaf for leaf in _leaves(given) if not isinstance(leaf, Optimizer)]
    return [leaf for leaf in leaves if hasattr(leaf, "step") and hasattr(leaf, "optimizer")]


def _with(given: Any, nulls: Mapping[int, Optimizer]) -> Any:
    """`given` with its optimizers replaced, in the same form."""
    if isinstance(given, Mapping):
        return {name: _with(item, nulls) for name, item in given.items()}
    if isinstance(given, (list, tuple)):
        return type(given)(_with(item, nulls) for item in given)
    return nulls.get(id(getattr(given, "_optimizer", given)), given)


def _follow(scheduler: Any, nulls: Mapping[int, Optimizer]) -> None:
    for inner in getattr(scheduler, "_schedulers", ()):
        _follow(inner, nulls)
    scheduler.optimizer = nulls.get(id(scheduler.optimizer), scheduler.optimizer)
