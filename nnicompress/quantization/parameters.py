"""A module's parameters as its quantized forward uses them, by the fake quantizers in the one child that it has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

QUANTIZERS = "quantizers"
"""The name of that child."""


def quantized(module: nn.Module, name: str) -> Tensor:
    """The module's parameter `name` as its forward uses it."""
    parameter: Any = getattr(module, name)
    quantizers: Any = module._modules[QUANTIZERS]
    found: Tensor = parameter
    if name in quantizers and parameter is not None:
        quantizer = quantizers[name]
        if quantizer.batch_norm:
            # These operators are no calls of the user's forward, which a frame counts (`frames.py`).
            with torch._C.DisableTorchFunction():
                factor = fold_factor(quantizer.batch_norm[0], parameter)
                found = quantizer(parameter * factor) / factor
        else:
            found = quantizer(parameter)
    return found


def fold_factor(batch_norm: Any, weight: Tensor) -> Tensor:
    """What a batch norm multiplies the output channels of a weight [channels, ...] by; 1 where that would be 0."""
    factor = (batch_norm.running_var + batch_norm.eps).rsqrt()
    if batch_norm.weight is not None:
        factor = factor * batch_norm.weight
    factor = torch.where(factor == 0, 1.0, factor)
    found: Tensor = factor.reshape(-1, *[1] * (weight.dim() - 1)).to(weight.dtype)
    return found
