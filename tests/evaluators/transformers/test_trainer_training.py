"""Training through the evaluator against a bare Trainer, and against the torch evaluator on the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from nnicompress.errors import UserError
from nnicompress.evaluators.contract import Evaluator, StepEvent
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.events import EpochDone, Event, Note, StepDone, TrainingFinished, TrainingStarted
from nnicompress.models.outputs import OneOutput
from nnicompress.trace import trace
from tests.evaluators.cases import assert_equal_weights
from tests.evaluators.transformers.cases import (
    Rows,
    bare_training,
    make_bert,
    make_evaluator,
    make_gpt2,
    settings,
)

LANGUAGE: dict[str, Any] = {"train_dataset": Rows(language=True), "eval_dataset": Rows(10, language=True)}


class SquaredLogits(Trainer):
    """A loss of the user's own, in an old form: the labels are taken out, and the loss is not scaled."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = (outputs.logits[:, 0] - labels.float()).square().mean()
        return (loss, outputs) if return_outputs else loss

    loss_is_scaled_for_ga = False


def summed_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    total = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (make_bert, {}),
    "language model": (make_gpt2, LANGUAGE),
    "accumulation": (make_bert, {"args": {"gradient_accumulation_steps": 4}}),
    "accumulation over tokens": (make_gpt2, {**LANGUAGE, "args": {"gradient_accumulation_steps": 2}}),
    "accumulation, own loss": (make_bert, {"cls": SquaredLogits, "args": {"gradient_accumulation_steps": 3}}),
    "accumulation, loss function": (
        make_bert,
        {"compute_loss_func": summed_loss, "args": {"gradient_accumulation_steps": 3}},
    ),
    "label smoothing": (make_bert, {"args": {"label_smoothing_factor": 0.1}}),
    "bfloat16": (make_bert, {"args": {"bf16": True}}),
    "activation checkpointing": (make_gpt2, {**LANGUAGE, "args": {"activation_checkpointing": True}}),
    "evaluation in between": (make_bert, {"args": {"eval_strategy": "steps", "eval_steps": 2}}),
    "no seedable sampler": (make_bert, {"args": {"accelerator_config": {"use_seedable_sampler": False}}}),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_weights_are_those_of_a_bare_trainer(name: str, tmp_path: Path) -> None:
    make, case = CASES[name]
    case = {**case, "args": {"num_train_epochs": 2, **case.get("args", {})}}
    model, truth = make(), make()
    evaluator = make_evaluator(**case)
    with evaluator.bound(model):
        result = evaluator.train()
    _, losses = bare_training(truth, tmp_path, **case)
    assert_equal_weights(model, truth)
    assert result.steps == len(losses) and result.epochs == 2.0
    assert result.losses == pytest.approx(losses, rel=1e-6)


def test_the_torch_evaluator_gives_the_same_on_the_same_batches() -> None:
    seen: list[dict[str, Tensor]] = []

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        seen.append(batch)
        return batch

    def loop(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for batch in seen[:max_steps]:
            optimizer.zero_grad()
            step(batch, model).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()

    model, twin = make_bert(), make_bert()
    optimizer, scheduler = trace(SGD)(model.named_parameters(), lr=0.1, momentum=0.9), trace(OneCycleLR)(max_lr=0.1)
    evaluator = make_evaluator(optimizers=optimizer, lr_schedulers=scheduler, data_collator=collate)
    with evaluator.bound(model):
        model.config.hidden_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        found = evaluator.train(max_steps=5)
    for module in twin.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    native = TorchEvaluator(loop, optimizer, lambda batch, model: model(**batch).loss, scheduler)
    with native.bound(twin):
        expected = native.train(max_steps=5)
    assert found.losses == pytest.approx(expected.losses, abs=1e-6)
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-6, rtol=1e-6)


def test_it_is_an_evaluator_and_tells_of_steps_and_epochs() -> None:
    events: list[Event] = []
    model = make_bert()
    evaluator: Evaluator = make_evaluator(args={"eval_strategy": "epoch"}, listener=events.append)
    with evaluator.bound(model):
        assert isinstance(evaluator, Evaluator)
        result = evaluator.train(max_epochs=2)
    assert events[0] == TrainingStarted(10) and events[-1] == TrainingFinished(10)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == list(range(1, 11))
    assert [event.learning_rate for event in steps] == pytest.approx([0.01 * (10 - n) / 10 for n in range(10)])
    assert steps[4].epoch == 1.0 and tuple(event.loss for event in steps) == result.losses
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert [event.epoch for event in epochs] == [1, 2]
    assert result.metrics == tuple(event.metrics for event in epochs) and set(result.metrics[0]) == {"loss", "default"}


def test_a_part_of_an_epoch_is_none() -> None:
    events: list[Event] = []
    evaluator = make_evaluator(listener=events.append)
    with evaluator.bound(make_bert()):
        result = evaluator.train(max_steps=7)
    assert [event for event in events if isinstance(event, EpochDone)] == [EpochDone(1, {})]
    assert result.steps == 7 and result.epochs == 1.4 and result.metrics == ({},)


@pytest.mark.parametrize(
    ("asked", "steps"),
    [({"max_steps": 3}, 3), ({"max_epochs": 2}, 10), ({"max_steps": 7, "max_epochs": 1}, 5), ({}, 15)],
)
def test_what_is_asked_replaces_the_arguments(asked: dict[str, int], steps: int) -> None:
    evaluator = make_evaluator(args={"num_train_epochs": 3})
    with evaluator.bound(make_bert()):
        assert evaluator.train(**asked).steps == steps


def test_trainings_of_one_evaluator_see_different_orders_and_can_be_repeated() -> None:
    def orders(evaluator: Any) -> list[Any]:
        found: list[Any] = []
        with evaluator.bound(make_bert()) as model:
            model.register_forward_pre_hook(
                lambda module, args, kwargs: found.append(kwargs["input_ids"].tolist()), with_kwargs=True
            )
            for _ in range(2):
                evaluator.train(max_epochs=1)
        return [found[:5], found[5:]]

    first, second = orders(make_evaluator())
    assert first != second and sorted(sum(first, [])) == sorted(sum(second, []))
    assert orders(make_evaluator()) == [first, second]
    with_data_seed = orders(make_evaluator(args={"data_seed": 8}))
    assert with_data_seed[0] not in (first, second) and with_data_seed[0] != with_data_seed[1]


def test_hooks_see_the_bound_model_around_a_one_output() -> None:
    events: list[StepEvent] = []
    inner, bare = make_bert(), make_bert()
    model = OneOutput(inner, "logits")
    evaluator = make_evaluator()
    with evaluator.bound(model):
        evaluator.before_step(events.append)
        old = inner.classifier.weight.clone()
        evaluator.before_step(lambda event: seen.append(torch.equal(inner.classifier.weight, old)))
        evaluator.after_step(lambda event: seen.append(torch.equal(inner.classifier.weight, old)))
        seen: list[bool] = []
        result = evaluator.train(max_steps=1)
    assert [event.step for event in events] == [1] and events[0].model is model and seen == [True, False]
    alone = make_evaluator()
    with alone.bound(bare):
        assert alone.train(max_steps=1).losses == result.losses
    assert_equal_weights(inner, bare)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("make", [make_bert, make_gpt2])
def test_a_penalty_counts_once_a_step_before_clipping(make: Any, accumulate: int) -> None:
    """The second model's loss has the penalty in it by hand, as often as there are batches, divided by their number."""

    class ByHand(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            adds_up = self.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None
            # Trainer divides a loss by the number of batches unless its model did.
            return loss + penalty(model) / (self.current_gradient_accumulation_steps if adds_up else 1)

    def penalty(model: nn.Module) -> Tensor:
        return 3 * next(p for name, p in model.named_parameters() if p.ndim == 2).square().sum()

    data = LANGUAGE if make is make_gpt2 else {}
    args = {"gradient_accumulation_steps": accumulate, "max_grad_norm": 0.5}
    models = make(), make()
    optimizer = trace(SGD)(models[0].named_parameters(), lr=0.05)
    evaluator = make_evaluator(args=args, optimizers=optimizer, **data)
    with evaluator.bound(models[0]):
        evaluator.add_penalty(penalty)
        result = evaluator.train(max_steps=2)
    by_hand = make_evaluator(ByHand, args=args, optimizers=optimizer, **data)
    with by_hand.bound(models[1]):
        by_hand.train(max_steps=2)
    for found, expected in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    without = make_evaluator(args=args, optimizers=optimizer, **data)
    with without.bound(make()):
        assert result.losses[0] == pytest.approx(without.train(max_steps=1).losses[0], rel=1e-6)


def test_the_users_callbacks_and_metrics_are_called() -> None:
    class Counting(TrainerCallback):
        steps = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps += 1

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    counting = Counting()
    evaluator = make_evaluator(args={"eval_strategy": "epoch"}, callbacks=[counting], compute_metrics=accuracy)
    with evaluator.bound(make_bert()):
        result = evaluator.train(max_epochs=1)
        evaluator.iterate(2)
        evaluator.evaluate()
    assert counting.steps == 5
    (metrics,) = result.metrics
    assert metrics["default"] == metrics["accuracy"] and set(metrics) == {"accuracy", "loss", "default"}


class StopAtThree(TrainerCallback, ExportableState):
    """Stops a training after three steps, by a count of its own."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.count += 1
        control.should_training_stop = self.count >= 3

    def state(self) -> dict[str, Any]:
        return {"args": {"count": self.count}, "attributes": {}}


def test_a_callback_that_stops_is_a_warning_and_starts_each_training_anew() -> None:
    notes: list[Event] = []
    stopping = StopAtThree()
    evaluator = make_evaluator(callbacks=[stopping], listener=notes.append)
    with evaluator.bound(make_bert()):
        assert [evaluator.train(max_epochs=4).steps for _ in range(2)] == [3, 3]
    text = "the Trainer made 3 optimizer steps; 20 were asked for: a callback stopped it"
    assert notes.count(Note(text, warning=True)) == 2
    assert stopping.count == 0


def test_it_is_quiet_and_writes_nothing_here(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = {"save_strategy": "epoch", "eval_strategy": "epoch", "logging_steps": 1}
    evaluator = make_evaluator(args=args)
    built = make_evaluator(args=TrainingArguments(**settings(**args)))
    for one in (evaluator, built):
        with one.bound(make_bert()):
            one.train(max_epochs=1)
            one.evaluate()
    assert list(tmp_path.iterdir()) == []
    captured = capfd.readouterr()
    assert captured.out == "" and "it/s" not in captured.err


def test_what_is_asked_for_is_written_and_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = {"output_dir": str(tmp_path), "save_strategy": "epoch", "disable_tqdm": False}
    evaluator = make_evaluator(args=args)
    with evaluator.bound(make_bert()):
        evaluator.train(max_epochs=1)
        evaluator.evaluate()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    assert "5/5" in capfd.readouterr().err


def test_a_step_without_compute_loss_is_told() -> None:
    class Own(Trainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            loss = model(**inputs).loss
            loss.backward()
            return loss.detach()

    evaluator = make_evaluator(Own)
    with (
        evaluator.bound(make_bert()),
        pytest.raises(UserError, match="Own.training_step never calls self.compute_loss"),
    ):
        evaluator.train(max_steps=2)
