"""What an evaluation measures, under which names, of models and of programs that stand for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, EvalPrediction, PrinterCallback, Trainer, TrainingArguments

from nnicompress.errors import UserError
from nnicompress.evaluators.transformers.metrics import averaged, plain_metrics, with_default
from nnicompress.export.program import ProgramModel, export_program
from nnicompress.models.outputs import OneOutput
from tests.evaluators.cases import assert_equal_weights, weights
from tests.evaluators.transformers.cases import VOCABULARY, Rows, make_bert, make_evaluator, make_gpt2, settings

LANGUAGE: dict[str, Any] = {"train_dataset": Rows(language=True), "eval_dataset": Rows(10, language=True)}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float((logits.argmax(-1) == prediction.label_ids).mean()), "half": 0.5}


def bare(model: nn.Module, folder: Path, dataset: Any, **more: Any) -> dict[str, float]:
    args = TrainingArguments(str(folder), **settings(disable_tqdm=True))
    trainer = Trainer(model=model, args=args, eval_dataset=dataset, **more)
    trainer.remove_callback(PrinterCallback)
    return trainer.evaluate()


def perplexity_by_hand(model: nn.Module, dataset: Rows, *, shift: bool) -> float:
    total, count = 0.0, 0
    model.eval()
    for row in dataset:
        labels = row.pop("labels")
        with torch.no_grad():
            logits = model(**{name: tensor[None] for name, tensor in row.items()}).logits[0]
        for position in range(len(labels)):
            target = position + 1 if shift else position
            if target < len(labels) and labels[target] != -100:
                total -= float(logits[position].log_softmax(-1)[labels[target]])
                count += 1
    return math.exp(total / count)


def test_metrics_are_the_trainers_without_prefix(tmp_path: Path) -> None:
    model = make_bert()
    truth = bare(model, tmp_path, Rows(10), compute_metrics=accuracy)
    evaluator = make_evaluator(compute_metrics=accuracy)
    before = weights(model)
    model.train()
    with evaluator.bound(model):
        torch.manual_seed(1)
        metrics = evaluator.evaluate()
        drawn = torch.rand(())
    torch.manual_seed(1)
    assert drawn == torch.rand(()) and model.training
    assert_equal_weights(model, before)
    assert metrics == {
        "loss": truth["eval_loss"],
        "accuracy": truth["eval_accuracy"],
        "half": 0.5,
        "default": truth["eval_accuracy"],
    }


@pytest.mark.parametrize(("metric", "chosen"), [("loss", "loss"), ("half", "half"), ("eval_accuracy", "accuracy")])
def test_the_named_metric_is_the_default(metric: str, chosen: str) -> None:
    evaluator = make_evaluator(compute_metrics=accuracy, metric=metric, args={"eval_strategy": "epoch"})
    with evaluator.bound(make_bert()):
        metrics = evaluator.evaluate()
        assert metrics["default"] == metrics[chosen]
        (of_epoch,) = evaluator.train(max_epochs=1).metrics
        assert of_epoch["default"] == of_epoch[chosen]


def test_the_test_split_is_measured_on_its_own_data() -> None:
    model = make_bert()
    evaluator = make_evaluator(test_dataset=Rows(12))
    swapped = make_evaluator(eval_dataset=Rows(12))
    with evaluator.bound(model):
        validation, test = evaluator.evaluate(), evaluator.evaluate("test")
    with swapped.bound(model):
        assert swapped.evaluate() == test == swapped.evaluate("test")
    assert validation != test


def test_several_datasets_are_averaged() -> None:
    model = make_bert()
    evaluator = make_evaluator(
        eval_dataset={"a": Rows(10), "b": Rows(12)}, compute_metrics=accuracy, args={"eval_strategy": "epoch"}
    )
    alone = []
    for size in (10, 12):
        one = make_evaluator(eval_dataset=Rows(size), compute_metrics=accuracy)
        with one.bound(model):
            alone.append(one.evaluate())
    with evaluator.bound(model):
        metrics = evaluator.evaluate()
    assert metrics["accuracy"] == metrics["default"] == (alone[0]["accuracy"] + alone[1]["accuracy"]) / 2
    assert metrics["a_loss"] == alone[0]["loss"] and metrics["b_accuracy"] == alone[1]["accuracy"]
    with evaluator.bound(model):
        (of_epoch,) = evaluator.train(max_epochs=1).metrics
        assert of_epoch == evaluator.evaluate()


@pytest.mark.parametrize("args", [{}, {"label_smoothing_factor": 0.3}, {"per_device_eval_batch_size": 7}])
def test_perplexity_of_a_causal_model_is_exact_over_tokens(args: dict[str, Any], tmp_path: Path) -> None:
    model, dataset = make_gpt2(), Rows(10, language=True)
    evaluator = make_evaluator(args={"eval_strategy": "epoch", **args}, **LANGUAGE)
    expected = perplexity_by_hand(model, dataset, shift=True)
    with evaluator.bound(model):
        metrics = evaluator.evaluate()
        assert metrics["perplexity"] == pytest.approx(expected, rel=1e-5)
        # The Trainer's own loss is a mean of batch means, which weighs tokens unequally.
        assert metrics["loss"] == pytest.approx(metrics["default"])
        assert math.exp(metrics["loss"]) != pytest.approx(expected, rel=1e-4)
        (of_epoch,) = evaluator.train(max_epochs=1).metrics
    assert of_epoch["perplexity"] == pytest.approx(perplexity_by_hand(model, dataset, shift=True), rel=1e-5)


def test_perplexity_of_a_masked_model() -> None:
    model = BertForMaskedLM(make_bert().config)
    evaluator = make_evaluator(metric="perplexity", **LANGUAGE)
    with evaluator.bound(model):
        found = evaluator.evaluate()["default"]
    assert found == pytest.approx(perplexity_by_hand(model, Rows(10, language=True), shift=False), rel=1e-5)
    classifier = make_evaluator()
    with classifier.bound(make_bert()):
        assert "perplexity" not in classifier.evaluate()


class Served(nn.Module):
    """What an exported program looks like: inputs by name, logits alone."""

    def __init__(self, model: nn.Module, form: str) -> None:
        super().__init__()
        self.model, self.form = (model.eval(),), form  # in a tuple: no submodule

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        logits = self.model[0](input_ids=input_ids, attention_mask=attention_mask).logits
        return {"tensor": logits, "tuple": (logits,), "mapping": {"logits": logits}}[self.form]


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping"])
@pytest.mark.parametrize("kind", ["classifier", "causal", "masked"])
def test_a_program_is_measured_as_its_model(kind: str, form: str) -> None:
    model: nn.Module = {
        "classifier": make_bert,
        "causal": make_gpt2,
        "masked": lambda: BertForMaskedLM(BertConfig(**{**make_bert().config.to_dict(), "vocab_size": VOCABULARY})),
    }[kind]()
    data = {} if kind == "classifier" else LANGUAGE
    evaluator = make_evaluator(compute_metrics=accuracy, **data)
    with evaluator.bound(OneOutput(model, "logits")):
        expected = evaluator.evaluate()
    with evaluator.bound(Served(model, form)):
        found = evaluator.evaluate()
    assert found == pytest.approx(expected, rel=1e-6) and ("perplexity" in found) == (kind != "classifier")


def test_an_exported_program_is_measured(tmp_path: Path) -> None:
    model = OneOutput(make_gpt2(), "logits").eval()
    evaluator = make_evaluator(args={"bf16": True}, **LANGUAGE)
    with evaluator.bound(model):
        export_program(model, evaluator.example_inputs(2), tmp_path / "model.pt2")
    exact = make_evaluator(**LANGUAGE)
    with exact.bound(model):
        expected = exact.evaluate()
    program = ProgramModel(tmp_path / "model.pt2")
    with evaluator.bound(program):
        found = evaluator.evaluate()  # at its own precision, whatever the training's
    assert found == pytest.approx(expected, rel=1e-5)
    assert list(program.modules()) == [program]


class Counting(nn.Module):
    """A plain network that computes its loss itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: Any = None) -> Any:
        logits = self.head((self.embedding(input_ids) * attention_mask[..., None]).mean(1))
        if labels is None:
            return logits
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_program_of_a_plain_network_is_measured_but_for_its_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Counting().eval()
    evaluator = make_evaluator(compute_metrics=accuracy)
    with evaluator.bound(model):
        expected = evaluator.evaluate()
        export_program(model, evaluator.example_inputs(2), tmp_path / "model.pt2")
    with evaluator.bound(ProgramModel(tmp_path / "model.pt2")):
        found = evaluator.evaluate()
    assert expected.pop("loss") > 0
    assert found == pytest.approx(expected, rel=1e-6)
    by_loss = make_evaluator(metric="loss")
    with by_loss.bound(model):
        by_loss.evaluate()
    with (
        by_loss.bound(ProgramModel(tmp_path / "model.pt2")),
        pytest.raises(UserError, match="metric: the evaluation measures no 'loss'"),
    ):
        by_loss.evaluate()


def test_a_program_without_its_model_is_told() -> None:
    evaluator = make_evaluator()
    with (
        evaluator.bound(Served(make_bert(), "tensor")),
        pytest.raises(UserError, match="Served takes no labels, so it computes no loss; bind a model of transformers"),
    ):
        evaluator.evaluate()
    with evaluator.bound(make_bert()):
        evaluator.evaluate()
    with (
        evaluator.bound(Empty()),
        pytest.raises(UserError, match="the program returned list without logits"),
    ):
        evaluator.evaluate()


class Empty(nn.Module):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return []


def test_a_plain_model_with_the_users_loss_is_trained_and_measured() -> None:
    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            logits = model(inputs["input_ids"])
            loss = nn.functional.cross_entropy(logits, inputs["labels"])
            return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    model = nn.Sequential(nn.Embedding(VOCABULARY, 4), nn.Flatten(), nn.Linear(24, 2))
    data = Rows(10)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(data.tokens), data.labels)
    evaluator = make_evaluator(
        Own, args={"remove_unused_columns": False, "label_names": ["labels"], "per_device_eval_batch_size": 10}
    )
    with evaluator.bound(model):
        assert evaluator.evaluate()["default"] == pytest.approx(float(expected), rel=1e-6)
        assert evaluator.train(max_steps=2).steps == 2
        args, kwargs = evaluator.example_inputs(2)
    assert args[0].shape == (2, 6) and not kwargs


def test_evaluation_without_labels_is_told() -> None:
    unlabelled = [{"input_ids": torch.ones(6, dtype=torch.long)} for _ in range(4)]
    evaluator = make_evaluator(eval_dataset=unlabelled)
    with evaluator.bound(make_bert()), pytest.raises(UserError, match="the evaluation measured nothing"):
        evaluator.evaluate()


def test_names_of_metrics() -> None:
    found = {"eval_loss": 1.0, "eval_runtime": 3.0, "epoch": 1.0, "eval_f1": 0.5, "eval_text": "x", "eval_mem_x": 1}
    assert plain_metrics(found) == {"loss": 1.0, "f1": 0.5}
    assert with_default({"loss": 1.0, "perplexity": 2.0}, None)["default"] == 1.0
    assert with_default({"default": 7.0, "loss": 1.0, "f1": 2.0}, None)["default"] == 7.0
    with pytest.raises(UserError, match="measures no 'f2'; there is 'loss', 'f1'"):
        with_default({"loss": 1.0, "f1": 0.5}, "f2")
    with pytest.raises(UserError, match="measures no 'acuracy'; did you mean 'accuracy'"):
        with_default({"loss": 1.0, "accuracy": 0.5}, "eval_acuracy")
    assert averaged({"a": {"x": 1.0, "y": 1.0}, "b": {"x": 3.0}}) == {"x": 2.0, "a_x": 1.0, "a_y": 1.0, "b_x": 3.0}
