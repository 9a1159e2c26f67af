"""A LightningModule around a plain classifier: recipes name a model, a loss and a metric, and need no class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningModule
from torch import Tensor, nn

from nnicompress.evaluators.training_step import predict, split_batch
from nnicompress.trace import Traced


class Classifier(LightningModule):
    """Trains `model` on `loss(predictions, targets)`; validation and test log `default`, the metric.

    Batches are pairs `(inputs, targets)`. It has no optimizer of its own: give the evaluator one.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Any, Any], Tensor], metric: Any = None) -> None:
        """Wrap `model`.

        Args:
            model: the bound model, a plain module.
            loss: `loss(predictions, targets)` returns one number, e.g. `nn.CrossEntropyLoss()`.
            metric: a torchmetrics metric, or how to build one, reset for each evaluation; None: the loss is logged.
        """
        super().__init__()
        self.model, self.loss = model, loss
        # In a list, so that it is no submodule: its state is none of the model's.
        self._metrics = [] if metric is None else [metric.build() if isinstance(metric, Traced) else metric]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's predictions."""
        return self.model(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of the batch."""
        inputs, targets = split_batch(batch)
        return self.loss(predict(self.model, inputs), targets)

    def on_validation_epoch_start(self) -> None:
        """Start a measurement."""
        for metric in self._metrics:
            metric.to(self.device).reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the measurement."""
        inputs, targets = split_batch(batch)
        predictions = predict(self.model, inputs)
        for metric in self._metrics:
            metric.update(predictions, targets)
        if not self._metrics:
            self.log("default", self.loss(predictions, targets), batch_size=len(targets), on_step=False, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        """Log the measurement."""
        for metric in self._metrics:
            self.log("default", metric.compute())

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end
