"""The shipped evaluating_func: torchmetrics over a role of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.errors import UserError
from nnicompress.evaluators.precision import Precision, autocast
from nnicompress.evaluators.training_step import device_of, predict, split_batch, to_device
from nnicompress.trace import Traced


class Evaluation:
    """Measures a model on `validation` or `test` and returns `{"default": ..., ...}`.

    Batches are moved to the device of the model's parameters. The model is in evaluation mode meanwhile, and in the
    mode it came in afterwards.
    """

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], Iterable[Any]]],
        metrics: Traced | Mapping[str, Traced],
        *,
        loss: Callable[[Any, Any], Tensor] | None = None,
        precision: Precision = "float32",
    ) -> None:
        """Say what to measure on which data.

        Args:
            loaders: split name -> function that returns the batches `(inputs, targets)`.
            metrics: how to build a torchmetrics metric, or several by name, of which the first is the default one.
                Each is built afresh for each evaluation and updated with `(predictions, targets)`.
            loss: also report `loss`, the mean of `loss(predictions, targets)` over the batches, weighted by size.
            precision: `bfloat16` runs the model under autocast.
        """
        self.loaders, self.loss, self.precision = dict(loaders), loss, precision
        self.metrics = {"default": metrics} if isinstance(metrics, Traced) else dict(metrics)
        if not self.metrics:
            raise UserError(
                "an evaluation needs a metric: metrics=nnicompress.trace(MulticlassAccuracy)(num_classes=10)"
            )

    def __call__(self, model: nn.Module, split: str = "validation") -> dict[str, float]:
        """Measure `model` on `split`."""
        if split not in self.loaders:
            raise UserError(f"no data for the split {split!r}; there is {', '.join(map(repr, self.loaders))}")
        device = device_of(model)
        metrics = {name: _of_this_process(traced.build().to(device)) for name, traced in self.metrics.items()}
        total_loss, num_samples = torch.zeros((), device=device), 0
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            # no_grad and not inference_mode: a module may keep a tensor made here, and train with it later.
            with torch.no_grad(), autocast(self.precision, device):
                for batch in self.loaders[split]():
                    inputs, targets = split_batch(batch if device.type == "cpu" else to_device(batch, device))
                    predictions = predict(model, inputs)
                    for metric in metrics.values():
                        metric.update(predictions, targets)
                    if self.loss is not None:
                        total_loss += self.loss(predictions, targets) * len(targets)
                    num_samples += len(targets)
        finally:
            for module, training in modes:
                module.training = training
        if not num_samples:
            raise UserError(f"the split {split!r} has no batches: nothing to evaluate on")
        values = {name: _one_number(name, metric.compute(), metric) for name, metric in metrics.items()}
        if self.loss is not None:
            values["loss"] = total_loss.item() / num_samples
        return {"default": next(iter(values.values())), **values}


def _of_this_process(metric: Any) -> Any:
    """`metric`, which doesn't ask other processes: each of them measures all of the data."""
    parts: Iterable[Any] = metric.modules() if isinstance(metric, nn.Module) else ()
    for part in parts:
        if hasattr(part, "distributed_available_fn"):
            part.distributed_available_fn = lambda: False
    return metric


def _one_number(name: str, value: Any, metric: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.item())
    if isinstance(value, (int, float)):
        return float(value)
    found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise UserError(
        f"metric {name!r} ({type(metric).__name__}) computes {found}, and one number is needed; choose an average, "
        "such as average='macro'"
    )
