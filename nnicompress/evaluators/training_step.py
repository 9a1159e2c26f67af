"""The shipped training step, `loss(model(inputs), targets)`, and how a batch meets a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.errors import UserError


class SupervisedStep:
    """A `training_step` for batches `(inputs, targets)`."""

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        """`loss(predictions, targets)` returns one number, e.g. `nn.CrossEntropyLoss()`."""
        self.loss = loss

    def __call__(self, batch: Any, model: nn.Module) -> Tensor:
        """The loss of the batch."""
        inputs, targets = split_batch(batch)
        return self.loss(predict(model, inputs), targets)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch.

    Raises:
        UserError: the batch is no pair.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        length = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise UserError(
            f"a batch is {type(batch).__name__}{length}; the shipped training step and evaluation take pairs (inputs, "
            "targets): change the data's collate function, or give a training_step and an evaluating_func of your own"
        )
    return batch[0], batch[1]


def predict(model: nn.Module, inputs: Any) -> Any:
    """The model's predictions: a mapping of inputs is passed by keyword, a tuple or list by position.

    Where the model returns a mapping, its `logits` are the predictions; where it returns a tuple, the first element.
    """
    if isinstance(inputs, Mapping):
        output = model(**inputs)
    elif isinstance(inputs, (tuple, list)):
        output = model(*inputs)
    else:
        output = model(inputs)
    if isinstance(output, Mapping):
        if "logits" not in output:
            raise UserError(f"the model returns a mapping without 'logits'; it has {sorted(map(str, output))}")
        return output["logits"]
    return output[0] if isinstance(output, tuple) else output


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors in `value` (through tuples, lists and mappings) on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if type(value) in (tuple, list):
        return type(value)(to_device(item, device) for item in value)
    if isinstance(value, Mapping):
        return {name: to_device(item, device) for name, item in value.items()}
    return value


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU for a model without any."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
