"""How much of the network is left: multiply-accumulates, parameters or latency, of the really smaller model."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.errors import ConfigError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.evaluators.preserve import same_training_mode
from nnicompress.graph.macs import count_macs
from nnicompress.graph.widths import ChannelGroups, Removal
from nnicompress.measure.latency import forward_call, measure_calls
from nnicompress.measure.size import count_parameters
from nnicompress.pruning.allotment import Allotments
from nnicompress.pruning.settings import BudgetSettings
from nnicompress.shrink.surgery import shrink

STEPS = 12
"""Halvings of the search: 1/4096 of all channels, less than one of any layer."""


class Budget:
    """What share of a model's cost is left once channel groups are removed."""

    def __init__(self, settings: BudgetSettings, model: nn.Module, groups: ChannelGroups, inputs: ModelInput) -> None:
        self.kind, self.goal = settings.kind, settings.remaining
        self._model, self._groups, self._inputs = model, groups, inputs
        self._table = LayerTable(inputs)
        self._whole = self._cost(model)

    def remaining(self, removal: Removal) -> float:
        """The share that is left without the removed groups."""
        lost = {name: indices for name, indices in removal.items() if len(indices)}
        return self._cost(shrink(self._model, self._groups, lost)) / self._whole if lost else 1.0

    def _cost(self, model: nn.Module) -> float:
        if self.kind == "params":
            return count_parameters(model)
        return count_macs(model, *self._inputs).total if self.kind == "macs" else self._table.seconds(model)


def scales_around(remaining: Callable[[float], float], goal: float, *, kind: str) -> tuple[float, float]:
    """Two neighbouring numbers in [0, 1], by halving: more than `goal` remains at the first, no more at the second.

    Raises:
        ConfigError: more than `goal` remains even at 1.
    """
    low, high = 0.0, 1.0
    least = remaining(high)
    if least > goal:
        raise ConfigError(
            f"{goal:.3g} of the {kind} can't be reached: with all that may go, {least:.3g} remains; select more "
            "layers, or raise max_sparse_ratio",
            key=f"target.{kind}",
        )
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if remaining(middle) <= goal else (middle, high)
    return low, high


def fewest_changes(
    fewer: Allotments, more: Allotments, changes: Sequence[tuple[str, ...]], enough: Callable[[Allotments], bool]
) -> Allotments:
    """`fewer` with as many of the first `changes` towards `more` as are enough; all of them are.

    Rounded alike, widths of 16, 32 and 64 lose their next eighth at one scale: a tenth of a network at a time.
    """

    def with_first(count: int) -> Allotments:
        return more.taking(itertools.chain.from_iterable(changes[count:]), fewer)

    return with_first(bisect_left(range(len(changes)), True, key=lambda count: enough(with_first(count))))


class LayerTable:
    """Seconds of each layer at each shape, measured once on this machine, alone, on its inputs in the model.

    A model's latency is the sum over its layers' calls (modules without children); what lies between, such as
    additions, is left out.
    """

    def __init__(self, inputs: ModelInput) -> None:
        self._inputs = inputs
        self.table: dict[Hashable, float] = {}

    def seconds(self, model: nn.Module) -> float:
        """Of one forward in evaluation mode."""
        calls: list[tuple[nn.Module, tuple[Any, ...]]] = []

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            calls.append((module, args))

        leaves = [module for module in model.modules() if not any(True for _ in module.children())]
        with same_training_mode(model), torch.inference_mode():
            model.eval()
            handles = [module.register_forward_pre_hook(note) for module in leaves]
            try:
                model(*self._inputs[0], **self._inputs[1])
            finally:
                for handle in handles:
                    handle.remove()
            return sum(self._look_up(module, args) for module, args in calls)

    def _look_up(self, module: nn.Module, args: tuple[Any, ...]) -> float:
        shapes = tuple((tuple(arg.shape), arg.dtype) if isinstance(arg, Tensor) else repr(arg) for arg in args)
        own = tuple(tuple(tensor.shape) for tensor in [*module.parameters(), *module.buffers()])
        key = (type(module), module.extra_repr(), own, shapes)
        if key not in self.table:
            call = forward_call(module, (args, {}))
            self.table[key] = measure_calls({"layer": call}, warmup=2, repeats=20, seconds=0.02)["layer"].median
        return self.table[key]
