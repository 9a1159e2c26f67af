"""A Trainer with its data: how it is built for a model, and what can be asked of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, TrainerCallback

from nnicompress.data.roles import Data
from nnicompress.errors import UserError
from nnicompress.evaluators.transformers.data import NamedInputs, trainer_data
from nnicompress.evaluators.transformers.record import TrainerRecord
from nnicompress.evaluators.transformers.stand_in import takes_anything, takes_labels
from nnicompress.evaluators.transformers.watched import Watched


class TrainerSetup:
    """What the user traced, with the datasets of a data object where none were traced."""

    def __init__(self, trainer: object, data: Data | None, test_dataset: Any) -> None:
        """The arguments of the evaluator of these names.

        Raises:
            UserError: an argument that can't work, by name; only one of the two datasets was traced beside `data`.
        """
        served = trainer_data(data) if data is not None else None
        self.record = TrainerRecord(trainer, served.settings if served else None)
        kwargs = self.record.kwargs
        own = [name for name in ("train_dataset", "eval_dataset") if kwargs.get(name) is not None]
        if served is not None and len(own) == 1:
            other = {"train_dataset": "eval_dataset", "eval_dataset": "train_dataset"}[own[0]]
            raise UserError(f"trainer: {own[0]} is given and {other} is not; give both, or leave both to the data")
        self._named = served is not None and not own
        if served is not None and not own:
            kwargs |= {"train_dataset": served.train_dataset, "eval_dataset": served.eval_dataset}
            test_dataset = served.test_dataset if test_dataset is None else test_dataset
        self._test_dataset = test_dataset

    @property
    def train_dataset(self) -> Any:
        """What is trained on; None where nobody says."""
        return self.record.kwargs.get("train_dataset")

    @property
    def can_train(self) -> bool:
        """Whether there are data to train on."""
        return self.train_dataset is not None or self.record.own_train_data

    @property
    def can_resume(self) -> bool:
        """Whether the place in the data and its random states are known: data of known length, loaded in this process.

        A process that loads data has random states of its own, which can't be set.
        """
        train = self.train_dataset
        return (
            hasattr(train, "__len__")
            and not self.record.own_train_data
            and not isinstance(train, IterableDataset)
            and not self.record.setting("dataloader_num_workers", 0)
        )

    def dataset(self, split: str) -> Any:
        """What a split is measured on: one dataset, or several by name."""
        if split == "test" and self._test_dataset is not None:
            return self._test_dataset
        return self.record.kwargs.get("eval_dataset")

    def build(
        self,
        model: nn.Module,
        folder: str,
        settings: Mapping[str, Any],
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> Watched:
        """A Trainer for `model`; the user's callbacks are called where there are `callbacks` of ours."""
        if self._named:
            kwargs["data_collator"] = NamedInputs(model)
        return self.record.build(
            model, folder, settings=settings, callbacks=callbacks or [], own_callbacks=callbacks is not None, **kwargs
        )

    def seeds(self, number: int) -> dict[str, int]:
        """The seeds of the evaluator's training of this number, from 0."""
        seeds = {"seed": self.record.setting("seed", 42), "data_seed": self.record.setting("data_seed")}
        return {name: (seed + number) % 2**32 for name, seed in seeds.items() if seed is not None}

    def length(self, max_steps: int | None, max_epochs: int | None) -> dict[str, Any]:
        """Settings for so many steps, else epochs, else what the user's say."""
        if max_steps is not None:
            return {"max_steps": max_steps}
        if max_epochs is None:
            return {}
        if self.train_dataset is not None and not hasattr(self.train_dataset, "__len__"):
            raise UserError(f"max_epochs={max_epochs}: train_dataset has no length; ask for max_steps")
        return {"max_steps": -1, "num_train_epochs": max_epochs}

    def refuse_idle(self, model: nn.Module) -> None:
        """Raise a UserError where there is nothing to train on, or no loss to train with."""
        if hasattr(self.train_dataset, "__len__") and not len(self.train_dataset):
            raise UserError("train_dataset has no samples")
        self.refuse_without_loss(model)

    def refuse_without_loss(self, model: nn.Module) -> None:
        """Raise a UserError where neither `model` nor the Trainer can compute a loss, as far as signatures tell."""
        if isinstance(model, PreTrainedModel) or takes_labels(model) or takes_anything(model):
            return
        if not self.record.own_loss and not self.record.setting("label_smoothing_factor", 0):
            raise UserError(
                f"{type(model).__name__} takes no labels, so it computes no loss; bind a model of transformers (to "
                "measure what was exported from it, before that), or give the Trainer a compute_loss of its own"
            )


def steps_per_epoch(trainer: Watched) -> int:
    """Optimizer steps in an epoch of a Trainer whose data have a length."""
    return math.ceil(len(trainer.get_train_dataloader()) / trainer.args.gradient_accumulation_steps)
