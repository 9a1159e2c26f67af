"""Which parameters of a model are the scales and shifts of its norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@dataclass(frozen=True)
class NormSlots:
    """The parameters' names (their first ones, where tied)."""

    scales: frozenset[str] = frozenset()
    shifts: frozenset[str] = frozenset()

    def of(self, scope: Literal["scales", "norms"]) -> frozenset[str]:
        """The scales, or scales and shifts."""
        return self.scales if scope == "scales" else self.scales | self.shifts

    @classmethod
    def of_model(cls, model: nn.Module) -> Self:
        """Of its batch norms, instance norms and group norms."""
        first = {id(parameter): name for name, parameter in model.named_parameters()}
        found: dict[str, set[str]] = {"weight": set(), "bias": set()}
        for module in model.modules():
            if isinstance(module, _NormBase | nn.GroupNorm):
                for name, names in found.items():
                    parameter = module._parameters.get(name)
                    if parameter is not None:
                        names.add(first[id(parameter)])
        return cls(frozenset(found["weight"]), frozenset(found["bias"]))
