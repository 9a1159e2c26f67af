"""The inputs of a model without what only its loss needs, so that graph capture and export see none of it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.utils.generic import find_labels

from nnicompress.evaluators.contract import ModelInput


def without_labels(model: nn.Module, inputs: ModelInput, label_names: Sequence[str] | None) -> ModelInput:
    """Leave out labels, and what tells a loss how to average; arguments that the forward can't do without stay.

    An encoder-decoder makes its decoder's inputs of the labels: these take their place.
    """
    args, kwargs = inputs
    found: list[str] = find_labels(type(model))  # type: ignore[no-untyped-call]
    dropped = {"labels", "num_items_in_batch", "return_loss", *(label_names or ()), *found}
    parameters = inspect.signature(type(model).forward).parameters

    def required(name: str) -> bool:
        return name in parameters and parameters[name].default is inspect.Parameter.empty

    kept: dict[str, Any] = {name: value for name, value in kwargs.items() if name not in dropped or required(name)}
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None and kwargs.get("labels") is not None and kept.get("decoder_input_ids") is None:
        kept["decoder_input_ids"] = shift(labels=kwargs["labels"])
    return args, kept
