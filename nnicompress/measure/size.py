"""Sizes: parameters, zeros among them, and the bytes of the file that holds the weights."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save, save_model
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters; tied ones count once, buffers don't count."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_zeros(model: nn.Module) -> int:
    """How many elements of the parameters are exactly zero."""
    return sum(parameter.numel() - int(parameter.count_nonzero()) for parameter in model.parameters())


def save_weights(model: nn.Module, path: Path) -> int:
    """Write the state_dict as safetensors (tied tensors once) and return the file's bytes."""
    save_model(model, str(path))
    return path.stat().st_size


def bytes_of_weights(model: nn.Module) -> int:
    """Bytes that the file of `save_weights` would have."""
    return len(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
