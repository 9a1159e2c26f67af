"""All tensors of a model, to be kept and put back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by its first name, persistent or not."""
    return dict([*model.named_parameters(), *model.named_buffers()])


@torch.no_grad()
def set_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into those of `all_tensors(model)`, in place, so that nothing that holds them notices."""
    for name, tensor in all_tensors(model).items():
        tensor.copy_(tensors[name])
