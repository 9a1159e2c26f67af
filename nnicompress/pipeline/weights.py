"""A model's tensors in a stage's folder: written when a stage ends, read when it is reused."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

from nnicompress.measure.size import save_weights as save_state

WEIGHTS = "model.safetensors"
BUFFERS = "buffers.safetensors"
"""Buffers that a state_dict lacks (`persistent=False`), where there are some."""


def save_weights(model: nn.Module, folder: Path) -> int:
    """Write the state_dict (tied tensors once) and the other buffers; returns the bytes of the state_dict's file."""
    size = save_state(model, folder / WEIGHTS)
    if others := _other_buffers(model):
        save_file({name: buffer.contiguous() for name, buffer in others.items()}, str(folder / BUFFERS))
    return size


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill `model`, whose shapes must be those that were saved."""
    load_model(model, folder / WEIGHTS)
    others = _other_buffers(model)
    if others:
        stored = load_file(folder / BUFFERS)
        for name, buffer in others.items():
            buffer.copy_(stored[name])


def _other_buffers(model: nn.Module) -> dict[str, Tensor]:
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in kept}
