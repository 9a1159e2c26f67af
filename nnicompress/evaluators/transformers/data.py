"""From a data object and a torchmetrics metric of a recipe to what a Trainer takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from transformers import EvalPrediction

from nnicompress.data.roles import Data
from nnicompress.errors import UserError
from nnicompress.evaluators.transformers.metrics import IGNORED
from nnicompress.trace import Traced


class NamedBatches(Dataset[Any]):
    """Whole batches of a data object's loader, so that a Trainer's collator finds them collated."""

    def __init__(self, loader: Any) -> None:
        """`loader` is one of a `Data`: its batches are pairs (inputs, targets)."""
        self.dataset, self.collate = loader.dataset, loader.collate_fn

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int) -> Any:
        return self.dataset[key]

    def __getitems__(self, keys: Sequence[int]) -> Any:
        """The batch of these keys, collated as the loader does it: a pair (inputs, targets)."""
        whole = getattr(self.dataset, "__getitems__", None)
        return self.collate(whole(list(keys)) if whole else [self.dataset[key] for key in keys])


@dataclass(frozen=True)
class TrainerData:
    """Datasets for a Trainer, and the settings they need."""

    train_dataset: Dataset[Any]
    eval_dataset: Dataset[Any]
    test_dataset: Dataset[Any]
    settings: Mapping[str, Any]
    """For TrainingArguments, where they don't say otherwise."""


def trainer_data(data: Data) -> TrainerData:
    """Datasets of the three roles of `data`, for a `NamedInputs` as collator; the Trainer shuffles, by its own seeds.

    Raises:
        UserError: a loader without a dataset of known length, whose order a Trainer couldn't choose.
    """
    loaders = {"train": data.train_loader(0), "validation": data.validation_loader(), "test": data.test_loader()}
    for role, loader in loaders.items():
        dataset = getattr(loader, "dataset", None)
        if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise UserError(
                f"data: the {role} loader has no dataset of known length, from which a Trainer could draw; give "
                "train_dataset and eval_dataset to the Trainer"
            )
    train = loaders["train"]
    # Not drop_last: a Trainer would drop samples of evaluations, too.
    settings = {
        "remove_unused_columns": False,
        "per_device_train_batch_size": train.batch_size,
        "per_device_eval_batch_size": loaders["validation"].batch_size,
        "dataloader_num_workers": train.num_workers,
    }
    return TrainerData(
        NamedBatches(train),
        NamedBatches(loaders["validation"]),
        NamedBatches(loaders["test"]),
        {name: value for name, value in settings.items() if value is not None},
    )


class NamedInputs:
    """The collator: a pair (inputs, targets) becomes the arguments of a forward, targets as `labels`."""

    def __init__(self, model: nn.Module) -> None:
        """Inputs that are a mapping keep their names; a tensor is the main input of `model`."""
        first = next(iter(inspect.signature(model.forward).parameters), "inputs")
        self.main_input_name: str = getattr(model, "main_input_name", first)

    def __call__(self, batch: Any) -> dict[str, Any]:
        """`{**inputs, "labels": targets}`; targets that are a mapping keep their names, too."""
        inputs, targets = batch
        named = inputs if isinstance(inputs, Mapping) else {self.main_input_name: inputs}
        return {**named, **(targets if isinstance(targets, Mapping) else {"labels": targets})}


def default_metrics(metric: Any, *, shift: bool = False) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` that returns `{"default": value}` of a torchmetrics metric.

    Args:
        metric: `trace(MulticlassAccuracy)(num_classes=10)`, or a metric; updated with predictions `[N, C]` and labels
            `[N]`, of all positions whose label is not -100.
        shift: predictions `[N, T, C]` of a position are for the next one's label, as of causal language models.
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        used = metric.build() if isinstance(metric, Traced) else metric
        used.reset()
        found = prediction.predictions
        predictions = torch.as_tensor(found[0] if isinstance(found, (tuple, list)) else found)
        labels = torch.as_tensor(prediction.label_ids)
        if shift:
            predictions, labels = predictions[:, :-1], labels[:, 1:]
        used.update(*_counted(predictions, labels))
        return {"default": float(used.compute())}

    return compute


def _counted(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and labels of the positions that count, one below the other."""
    if labels.is_floating_point():
        return (predictions.squeeze(-1) if predictions.ndim == labels.ndim + 1 else predictions), labels
    counts = labels != IGNORED
    if predictions.ndim == labels.ndim + 1 and labels.ndim > 1:
        return predictions[counts], labels[counts]
    return (predictions, labels) if bool(counts.all()) else (predictions[counts], labels[counts])
