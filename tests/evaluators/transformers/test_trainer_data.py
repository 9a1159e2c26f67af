"""A recipe's data and metric with a Trainer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanSquaredError
from transformers import EvalPrediction, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from nnicompress.data.digits import Digits
from nnicompress.errors import UserError
from nnicompress.evaluators.transformers.data import NamedInputs, default_metrics, trainer_data
from nnicompress.evaluators.transformers.evaluator import TransformersEvaluator
from nnicompress.models.outputs import OneOutput
from nnicompress.trace import trace
from tests.evaluators.transformers.cases import Rows, make_bert, make_evaluator, settings


def make_vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=10,
        )
    )


class Mappings:
    """Data whose inputs are a mapping, as token sequences are; samples are collated one by one."""

    num_classes, input_shape = 2, (6,)

    def _loader(self, size: int) -> DataLoader[Any]:
        rows = Rows(size)

        def collate(samples: list[Any]) -> Any:
            tokens, labels = (torch.stack(part) for part in zip(*samples, strict=True))
            return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, labels

        return DataLoader(TensorDataset(rows.tokens, rows.labels), batch_size=5, collate_fn=collate)

    def train_loader(self, seed: int) -> DataLoader[Any]:
        return self._loader(20)

    def validation_loader(self) -> DataLoader[Any]:
        return self._loader(10)

    def test_loader(self) -> DataLoader[Any]:
        return self._loader(12)

    def fingerprint(self) -> str:
        return ""


def test_digits_train_and_are_measured_by_torchmetrics() -> None:
    data = Digits(batch_size=128)
    args = settings(learning_rate=3e-3)
    del args["per_device_train_batch_size"], args["per_device_eval_batch_size"]
    evaluator = TransformersEvaluator(
        trace(Trainer)(
            args=trace(TrainingArguments)(**args),
            compute_metrics=trace(default_metrics)(trace(MulticlassAccuracy)(num_classes=10, average="micro")),
        ),
        data=data,
    )
    model = make_vit()
    with evaluator.bound(OneOutput(model, "logits")):
        _, kwargs = evaluator.example_inputs()
        assert kwargs.keys() == {"pixel_values"} and kwargs["pixel_values"].shape == (128, 1, 8, 8)
        evaluator.train(max_epochs=4)
        for split, loader in (("validation", data.validation_loader()), ("test", data.test_loader())):
            model.eval()
            with torch.no_grad():
                right = [(model(images).logits.argmax(-1) == labels) for images, labels in loader]
            truth = torch.cat(right).float().mean().item()
            assert evaluator.evaluate(split)["default"] == pytest.approx(truth, abs=1e-6)
    assert truth > 0.3 and "resume" in evaluator.capabilities


def test_inputs_that_are_a_mapping_keep_their_names() -> None:
    model, twin = make_bert(), make_bert()
    by_data = TransformersEvaluator(
        trace(Trainer)(args=trace(TrainingArguments)(**settings(per_device_train_batch_size=4))), data=Mappings()
    )
    by_rows = make_evaluator(test_dataset=Rows(12))
    results = []
    for evaluator, one in ((by_data, model), (by_rows, twin)):
        with evaluator.bound(one):
            results.append((evaluator.train(max_epochs=1), evaluator.evaluate(), evaluator.evaluate("test")))
    assert results[0] == results[1]


def test_the_loaders_batch_size_serves_where_none_is_traced() -> None:
    served = trainer_data(Mappings())
    assert served.settings["per_device_train_batch_size"] == 5
    batch = NamedInputs(make_bert())(served.train_dataset.__getitems__([3, 0]))  # type: ignore[attr-defined]
    assert torch.equal(batch["input_ids"], Rows(20).tokens[[3, 0]])
    assert torch.equal(batch["labels"], Rows(20).labels[[3, 0]])
    assert NamedInputs(make_vit())((torch.ones(1), torch.ones(1))).keys() == {"pixel_values", "labels"}
    assert NamedInputs(torch.nn.Linear(2, 2))((torch.ones(1), {"y": 1})).keys() == {"input", "y"}


def test_data_without_a_length_or_half_given_are_told() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter([1])

    stream = SimpleNamespace(train_loader=lambda seed: DataLoader(Stream()), validation_loader=list, test_loader=list)
    with pytest.raises(UserError, match="the train loader has no dataset of known length"):
        trainer_data(stream)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="train_dataset is given and eval_dataset is not"):
        TransformersEvaluator(trace(Trainer)(train_dataset=Rows()), data=Mappings())


def test_metrics_count_labelled_positions() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 5, size=(3, 4))
    labels[0, :2] = labels[2, 3] = -100
    micro = trace(MulticlassAccuracy)(num_classes=5, average="micro")

    def by_hand(shift: int) -> float:
        hits = [
            logits[row, position - shift].argmax() == labels[row, position]
            for row in range(3)
            for position in range(shift, 4)
            if labels[row, position] != -100
        ]
        return float(np.mean(hits))

    for shift in (0, 1):
        compute = default_metrics(micro if shift else micro.build(), shift=bool(shift))
        for _ in range(2):  # nothing is carried over
            assert compute(EvalPrediction(logits, labels)) == {"default": pytest.approx(by_hand(shift))}
        with_more = compute(EvalPrediction((logits, "hidden states"), labels))
        assert with_more["default"] == pytest.approx(by_hand(shift))
    values = np.array([[1.0], [3.0]], dtype=np.float32)
    squared = default_metrics(trace(MeanSquaredError)())(EvalPrediction(values, np.array([1.0, 1.0], dtype=np.float32)))
    assert squared == {"default": 2.0}
