"""A model that returns one field of another's structured output."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class OneOutput(nn.Module):
    """Calls `model` and returns `output[field]`, so that a model with a mapping as output serves as a classifier.

    The parameters' names begin with `model.`.
    """

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model = model
        self.field = field

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The chosen field of what the model returns."""
        output: Tensor = self.model(*args, **kwargs)[self.field]
        return output


def class_name(model: nn.Module) -> str:
    """What the user knows the model as: the class inside a OneOutput."""
    return type(model.model if isinstance(model, OneOutput) else model).__name__
