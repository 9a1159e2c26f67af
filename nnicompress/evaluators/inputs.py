"""Example inputs of a model's forward: from what the user gave, and at any batch size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from nnicompress.errors import UserError
from nnicompress.evaluators.contract import ModelInput


class FirstForward(BaseException):
    """Leaves the user's loop when the model is called: carries the call's arguments.

    Not an Exception, so that no `except Exception` of the user's loop keeps it.
    """

    def __init__(self, inputs: ModelInput) -> None:
        self.inputs = inputs
        super().__init__("the model's first inputs")


def as_model_input(dummy_input: Any) -> ModelInput:
    """A tensor is the only argument, a tuple or list the positional ones, a mapping the keyword ones.

    Raises:
        UserError: it is none of these, or holds no tensor.
    """
    inputs: ModelInput
    if isinstance(dummy_input, Tensor):
        inputs = ((dummy_input,), {})
    elif isinstance(dummy_input, (tuple, list)):
        inputs = (tuple(dummy_input), {})
    elif isinstance(dummy_input, Mapping):
        inputs = ((), dict(dummy_input))
    else:
        raise UserError(
            f"dummy_input is {type(dummy_input).__name__}; it must be a tensor, a tuple or a dict of tensors"
        )
    if not any(True for _ in tensors_in(inputs)):
        raise UserError("dummy_input holds no tensor; give real inputs of the model's forward")
    return inputs


def resized(inputs: ModelInput, batch_size: int | None) -> ModelInput:
    """`inputs` cut or repeated to `batch_size` along dimension 0.

    The first tensor says what the batch size is now; tensors of another length along dimension 0 stay as they are.
    """
    first = next((tensor for tensor in tensors_in(inputs) if tensor.ndim), None)
    if batch_size is None or first is None or len(first) == batch_size:
        return inputs
    if batch_size < 1 or len(first) == 0:
        raise UserError(f"example inputs of batch size {batch_size} can't be made of a batch of {len(first)}")
    rows = torch.arange(batch_size, device=first.device) % len(first)
    return _mapped(inputs, len(first), rows)  # type: ignore[no-any-return]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))


def _mapped(value: Any, size: int, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.ndim and len(value) == size else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, size, rows) for item in value))
    if type(value) in (tuple, list):
        return type(value)(_mapped(item, size, rows) for item in value)
    if isinstance(value, Mapping):
        return {name: _mapped(item, size, rows) for name, item in value.items()}
    return value
