"""Masks and the pruner with a Trainer: what they remove stays zero, whatever the Trainer does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import SGD

from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.models.outputs import OneOutput
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.pruner import Pruner
from nnicompress.trace import trace
from tests.evaluators.transformers.cases import Rows, make_bert, make_evaluator

NAME = "bert.encoder.layer.0.intermediate.dense.weight"


def masks_of(model: nn.Module) -> Masks:
    keep = torch.ones_like(model.get_parameter(NAME), dtype=torch.bool)
    keep[::2] = False
    return Masks({NAME: keep})


@pytest.mark.parametrize(
    "args",
    [{}, {"bf16": True}, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1}, {"activation_checkpointing": True}],
    ids=str,
)
def test_masked_weights_stay_zero_and_the_others_move(args: dict[str, Any]) -> None:
    model = make_bert()
    masks = masks_of(model)
    removed = ~masks.keep[NAME]
    evaluator = make_evaluator(args=args)
    with evaluator.bound(model):
        masks.attach(evaluator)
        kept = model.get_parameter(NAME)[~removed].clone()
        seen: list[bool] = []
        evaluator.before_step(
            lambda event: seen.append(bool(event.model.get_parameter(NAME).grad[removed].eq(0).all()))
        )
        evaluator.train(max_steps=3)
    weight = model.get_parameter(NAME)
    assert weight[removed].eq(0).all() and not torch.equal(weight[~removed], kept) and all(seen)


def test_masked_gradients_do_not_count_in_the_clip_norm() -> None:
    """Clipping scales by the norm of what is kept: the classifier moves as if the masked gradients were not there."""
    model = make_bert()
    masks = masks_of(model)
    optimizer = trace(SGD)(model.named_parameters(), lr=1.0)
    evaluator = make_evaluator(args={"max_grad_norm": 1e-3}, optimizers=optimizer)
    norms: list[float] = []
    with evaluator.bound(model):
        masks.attach(evaluator)
        evaluator.before_step(
            lambda event: norms.append(
                torch.stack([p.grad.norm() for p in event.model.parameters() if p.grad is not None]).norm().item()
            )
        )
        evaluator.train(max_steps=2)
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_masks_apply_after_the_best_weights_were_loaded() -> None:
    args = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    model = make_bert()
    masks = masks_of(model)
    evaluator = make_evaluator(args={**args, "learning_rate": 0.5})  # the first step's weights are the best
    saved: list[bool] = []
    with evaluator.bound(model):
        first: list[torch.Tensor] = []

        def late(event: Any) -> None:
            if event.step == 1:
                first.append(weight.detach().clone())
            if event.step == 3:
                masks.attach(evaluator)

        evaluator.after_step(late)
        weight = model.get_parameter(NAME)
        evaluator.before_evaluate(lambda model: saved.append(bool(weight[~masks.keep[NAME]].eq(0).all())))
        result = evaluator.train(max_steps=4)
    assert result.steps == 4
    kept = masks.keep[NAME]
    assert torch.equal(weight[kept], first[0][kept]) and first[0][~kept].ne(0).all(), "the first were to be the best"
    assert weight[~kept].eq(0).all()
    # At steps 1 and 2 nothing is masked; before each evaluation and each checkpoint from then on, all is.
    assert saved[0] is False and saved[-2] is True


def test_what_precedes_an_evaluation_precedes_it_in_a_training_too(tmp_path: Path) -> None:
    @torch.no_grad()
    def zero_the_head(model: nn.Module) -> None:
        for parameter in model.get_submodule("classifier").parameters():
            parameter.zero_()

    evaluator = make_evaluator(args={"eval_strategy": "epoch"})
    with evaluator.bound(make_bert()):
        evaluator.before_evaluate(zero_the_head)
        (metrics,) = evaluator.train(max_epochs=1).metrics
    assert metrics["loss"] == pytest.approx(math.log(2), rel=1e-6)
    evaluator = make_evaluator(args={"output_dir": str(tmp_path), "save_strategy": "epoch"})
    with evaluator.bound(make_bert()):
        evaluator.before_evaluate(zero_the_head)
        evaluator.train(max_epochs=1)
    saved = load_file(tmp_path / "checkpoint-5" / "model.safetensors")
    assert saved["classifier.weight"].eq(0).all() and saved["bert.pooler.dense.weight"].ne(0).any()


def test_the_pruner_removes_what_it_removes_with_the_torch_evaluator() -> None:
    def make() -> nn.Module:
        model = OneOutput(make_bert(), "logits")
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model

    rows = Rows()

    def loader(seed: int) -> Any:
        return torch.utils.data.DataLoader(rows, batch_size=20)

    def step(batch: Any, model: nn.Module) -> Any:
        labels = batch["labels"]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return nn.functional.cross_entropy(logits, labels)

    model = make()
    optimizer = trace(SGD)(model.named_parameters(), lr=0.1)
    native = TorchEvaluator(
        TrainingLoop(loader),
        optimizer,
        step,
        dummy_input={"input_ids": rows.tokens[:2], "attention_mask": torch.ones_like(rows.tokens[:2])},
    )
    trainers = make_evaluator(args={"per_device_train_batch_size": 20}, optimizers=optimizer)
    targets = [{"op_types": ["Linear"], "exclude_op_names_re": [".*classifier.*", ".*pooler.*"], "sparse_ratio": 0.5}]
    found = []
    for evaluator, pruned in ((native, model), (trainers, make())):
        found.append(Pruner(targets, evaluator, importance={"name": "taylor", "training_steps": 1}).compress(pruned))
    assert found[0].removed == found[1].removed > 0
    assert found[0].masks.keep.keys() == found[1].masks.keep.keys()
    for name, keep in found[0].masks.keep.items():
        assert torch.equal(keep, found[1].masks.keep[name]), name
