"""Each wrong input is one line that says what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import LBFGS, SGD, AdamW
from torch.optim.lr_scheduler import StepLR
from transformers import Trainer, TrainingArguments

from nnicompress.errors import UserError
from nnicompress.evaluators.transformers.evaluator import TransformersEvaluator
from nnicompress.trace import trace
from tests.evaluators.transformers.cases import Rows, make_bert, make_evaluator, settings


def with_trainer(**kwargs: Any) -> TransformersEvaluator:
    return TransformersEvaluator(trace(Trainer)(**kwargs))


sgd = trace(SGD)(make_bert().parameters(), lr=0.1)

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "class": (
        lambda: TransformersEvaluator(Trainer),
        "doesn't say how to build a Trainer; write trainer=nnicompress.tr",
    ),
    "nothing": (lambda: TransformersEvaluator(None), "None doesn't say how to build a Trainer"),
    "other class": (lambda: TransformersEvaluator(trace(SGD)([], lr=1.0)), "SGD is no transformers.Trainer class"),
    "misspelt": (lambda: trace(Trainer)(train_datset=Rows()), "no 'train_datset'; did you mean 'train_dataset'"),
    "old name": (lambda: trace(Trainer)(tokenizer=None), "Trainer takes no 'tokenizer'"),
    "args": (lambda: with_trainer(args={"seed": 1}), "args is dict; it must be TrainingArguments"),
    "args' argument": (lambda: trace(TrainingArguments)(sed=1), "no 'sed'; did you mean 'seed'"),
    "model_init": (lambda: with_trainer(model_init=make_bert), "model_init builds a model of its own"),
    "built optimizer": (
        lambda: with_trainer(optimizers=(SGD(make_bert().parameters(), lr=0.1), None)),
        "optimizers: SGD is already built, tied to the parameters of one model; record how it is built",
    ),
    "optimizer alone": (lambda: with_trainer(optimizers=sgd), "optimizers is a pair"),
    "two places": (
        lambda: TransformersEvaluator(trace(Trainer)(optimizers=(sgd, None)), optimizers=sgd),
        "given to the evaluator and to its Trainer; give them once",
    ),
    "two ways": (
        lambda: TransformersEvaluator(trace(Trainer)(optimizer_cls_and_kwargs=(SGD, {})), optimizers=sgd),
        "optimizer_cls_and_kwargs, too; give one",
    ),
    "two optimizers": (lambda: make_evaluator(optimizers=[sgd, sgd]), "optimizers: a Trainer has one, and 2 are given"),
    "L-BFGS": (
        lambda: make_evaluator(optimizers=trace(LBFGS)(make_bert().parameters())),
        "LBFGS calls a closure several times a step",
    ),
    "L-BFGS class": (lambda: with_trainer(optimizer_cls_and_kwargs=(LBFGS, {})), "LBFGS calls a closure several"),
    "scheduler alone": (
        lambda: make_evaluator(lr_schedulers=trace(StepLR)(step_size=1)),
        "would set the rate of an optimizer that the Trainer builds; give optimizers, too",
    ),
    "built scheduler": (
        lambda: make_evaluator(
            optimizers=sgd, lr_schedulers=StepLR(AdamW([torch.nn.Parameter(torch.ones(1))]), step_size=1)
        ),
        "StepLR is already built",
    ),
    "metrics": (lambda: with_trainer(compute_metrics="accuracy"), "compute_metrics is str; it must be a function"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_told(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(UserError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_built_trainer_is_told(tmp_path: Path) -> None:
    trainer = Trainer(make_bert(), TrainingArguments(str(tmp_path), **settings(disable_tqdm=True)))
    with pytest.raises(
        UserError, match="Trainer is already built, tied to one model; record how it is built: trainer="
    ):
        TransformersEvaluator(trainer)


RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "no train data": ({"train_dataset": None}, r"needs train_dataset: .*give it to the Trainer: nnicompress.trace\(Tr"),
    "sharded": ({"args": {"fsdp": True}}, "args: fsdp shards parameters"),
    "batch size": ({"args": {"auto_find_batch_size": True}}, "auto_find_batch_size starts a training over"),
    "refused value": ({"args": {"fp16": True, "bf16": True}}, "TrainingArguments: At most one of fp16 and bf16"),
    "unknown interval": ({"args": {"eval_strategy": "sometimes"}}, "TrainingArguments: sometimes is not a valid Inter"),
    "no evaluation data": ({"args": {"eval_strategy": "epoch"}, "eval_dataset": None}, "Trainer: "),
    "in the backward pass": ({"args": {"optim": "lomo"}}, "optim='lomo' moves weights inside the backward pass"),
    "unknown optimizer": ({"args": {"optim": "sdg"}}, "sdg is not a valid OptimizerNames"),
    "metric": (
        {"metric": "acuracy", "args": {"eval_strategy": "epoch"}},
        "metric: the evaluation measures no 'acuracy'",
    ),
    "loss": (
        {"compute_loss_func": lambda *args, **kwargs: 3.0},
        "Trainer.compute_loss returned float; it must be a te",
    ),
    "best metric": (
        {"args": {"eval_strategy": "epoch", "save_strategy": "epoch", "metric_for_best_model": "losss"}},
        "metric_for_best_model: the evaluation measures no 'losss'; did you mean 'loss'",
    ),
    "empty": ({"train_dataset": []}, "train_dataset has no samples"),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_only_a_run_finds_is_told(name: str) -> None:
    given, message = RUNS[name]
    evaluator = make_evaluator(**given)
    with evaluator.bound(make_bert()), pytest.raises(UserError, match=message):
        evaluator.train(max_epochs=1)


def test_evaluation_data_and_splits_that_are_missing_are_told() -> None:
    evaluator = make_evaluator(eval_dataset=None)
    with evaluator.bound(make_bert()):
        assert evaluator.capabilities == {"train", "iterate", "example_inputs", "resume"}
        with pytest.raises(UserError, match=r"evaluate\(\) needs eval_dataset"):
            evaluator.evaluate()


def test_data_that_can_not_be_gone_on_with_are_not_promised() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(Rows())

    stream = make_evaluator(train_dataset=Stream())
    assert "resume" not in stream.capabilities
    assert "resume" not in make_evaluator(args={"dataloader_num_workers": 1}).capabilities
    with stream.bound(make_bert()):
        assert stream.train(max_steps=7).steps == 7
        with pytest.raises(UserError, match="max_epochs=2: train_dataset has no length; ask for max_steps"):
            stream.train(max_epochs=2)


def test_the_package_does_not_import_transformers() -> None:
    code = (
        "import sys, nnicompress, nnicompress.engines, nnicompress.evaluators.torch_evaluator\n"
        "assert not {'transformers', 'accelerate', 'pytorch_lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
