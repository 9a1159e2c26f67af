"""LightningModules as users write them, and the same batches for every engine."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from nnicompress.evaluators.lightning.evaluator import LightningEvaluator
from nnicompress.trace import Traced, trace
from tests.evaluators.cases import make_dataset, make_model

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "accelerator": "cpu",
    "devices": 1,
}
NUM_BATCHES = 6


class Net(LightningModule):
    """A classifier with dropout and batch-norm."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = make_model(seed)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(self(inputs), targets)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, targets = batch
        outputs = self(inputs)
        self.log("val_loss", nn.functional.cross_entropy(outputs, targets), batch_size=len(targets))
        self.log("val_acc", (outputs.argmax(1) == targets).float().mean(), batch_size=len(targets))

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1, momentum=0.9)


def ordered(num_samples: int = 48) -> DataLoader[Any]:
    """Batches in a fixed order; with a generator, so that iterating draws nothing from the global one."""
    return DataLoader(make_dataset(num_samples), batch_size=8, generator=torch.Generator())


def loaders(**more: Any) -> dict[str, Any]:
    return {"train": ordered, "validation": lambda: ordered(40), **more}


def make_trainer(**settings: Any) -> Traced:
    traced = trace(Trainer)(accelerator="cpu", devices=1, **settings)
    assert isinstance(traced, Traced)
    return traced


def make_evaluator(trainer: Any = None, data: Any = None, **more: Any) -> LightningEvaluator:
    more.setdefault("metric", "val_acc")
    return LightningEvaluator(trainer or make_trainer(), loaders() if data is None else data, **more)


class Losses:
    """The losses of a bare fit, in `training_step`'s order."""

    def __init__(self, module: LightningModule) -> None:
        self.values: list[float] = []
        original = module.training_step

        def training_step(batch: Any, batch_idx: int) -> Any:
            output = original(batch, batch_idx)
            self.values.append(float(output["loss"] if isinstance(output, dict) else output))
            return output

        module.training_step = training_step  # type: ignore[method-assign]


def bare_fit(module: LightningModule, train: Any = None, validation: Any = None, **settings: Any) -> Trainer:
    """Lightning alone, without nnicompress."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(**{**QUIET, **settings})
        trainer.fit(module, train or ordered(), validation or ordered(40))
    return trainer


def total_norm(gradients: list[Tensor]) -> float:
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())
