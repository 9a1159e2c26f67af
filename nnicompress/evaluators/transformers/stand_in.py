"""Evaluates a program that only returns logits as if it were the model it was exported from, its loss included."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from nnicompress.errors import UserError


@dataclass(frozen=True)
class Original:
    """What an evaluation needs of a model, without its weights."""

    cls: type[nn.Module]
    config: Any
    loss: Callable[..., Tensor] | None
    """None: computed inside the model's forward, so that a program's logits tell nothing of it."""

    @classmethod
    def of(cls, model: nn.Module) -> Original | None:
        """What `model` is, and how it computes its loss; None where it computes none."""
        if isinstance(model, PreTrainedModel):
            return cls(type(model), copy.deepcopy(model.config), model.loss_function)
        return cls(type(model), None, None) if takes_labels(model) else None


def takes_labels(module: nn.Module) -> bool:
    """Whether the module's forward has an argument `labels`, and so computes a loss."""
    return "labels" in inspect.signature(module.forward).parameters


def takes_anything(module: nn.Module) -> bool:
    """Whether the module's forward takes arguments of any name."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values())


def stand_in(program: nn.Module, original: Original) -> nn.Module:
    """A module with the name, the signature and the loss of the original, whose logits are those of `program`."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> ModelOutput:
        labels, num_items = kwargs.pop("labels", None), kwargs.pop("num_items_in_batch", None)
        logits = _logits_of(program(*args, **kwargs))
        if labels is None:
            return ModelOutput(logits=logits)  # type: ignore[no-untyped-call]
        loss = _loss(original, logits, labels, num_items)
        return ModelOutput(loss=loss, logits=logits)  # type: ignore[no-untyped-call]

    # A Trainer reads which inputs and which labels a model takes from its forward's signature.
    vars(forward)["__signature__"] = inspect.signature(original.cls.forward)
    cls = type(original.cls.__name__, (nn.Module,), {"forward": forward, "accepts_loss_kwargs": True})
    module: nn.Module = cls()
    # In a dict, so that it is no submodule: exported programs refuse train() and eval().
    if original.config is not None:
        vars(module)["config"] = copy.deepcopy(original.config)
    if (name := getattr(original.cls, "main_input_name", None)) is not None:
        vars(module)["main_input_name"] = name
    return module


def _loss(original: Original, logits: Tensor, labels: Tensor, num_items: Any) -> Tensor:
    if original.loss is None:
        return logits.new_full((), math.nan)
    config = original.config
    return original.loss(
        logits=logits,
        pooled_logits=logits,
        labels=labels,
        config=config,
        vocab_size=getattr(config, "vocab_size", logits.shape[-1]),
        num_items_in_batch=num_items,
    )


def _logits_of(output: Any) -> Tensor:
    logits = output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif isinstance(output, (tuple, list)):
        logits = output[0] if output else None
    if not isinstance(logits, Tensor):
        raise UserError(f"the program returned {type(output).__name__} without logits, which its loss is computed from")
    return logits
