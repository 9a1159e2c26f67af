"""Dry runs and example inputs: gradients and hooks of a Trainer's training, with nothing moved."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
)

from nnicompress.errors import UserError
from nnicompress.graph.capture import capture
from nnicompress.models.outputs import OneOutput
from tests.evaluators.cases import assert_equal_weights, weights
from tests.evaluators.transformers.cases import VOCABULARY, Rows, make_bert, make_evaluator, make_gpt2


@pytest.mark.parametrize("args", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}])
def test_gradients_are_those_of_the_training_and_nothing_moves(args: dict[str, Any]) -> None:
    def gradients(evaluator: Any, model: nn.Module, run: str) -> list[Tensor]:
        found: list[Tensor] = []
        handle = evaluator.before_step(
            lambda event: found.append(model.get_parameter("classifier.1.weight").grad.clone())
        )
        evaluator.iterate(1) if run == "iterate" else evaluator.train(max_steps=1)
        handle.remove()
        return found

    model = make_bert()
    model.classifier = nn.Sequential(nn.BatchNorm1d(16), model.classifier)  # type: ignore[assignment]
    model.bert.eval()
    before, modes = weights(model), [module.training for module in model.modules()]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    evaluator = make_evaluator(args={"report_to": "tensorboard", "save_strategy": "epoch", **args})
    with evaluator.bound(model):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        iterated = gradients(evaluator, model, "iterate")
        assert (torch.rand(()).item(), random.random(), np.random.rand()) == draws(3)
        assert_equal_weights(model, before)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert [module.training for module in model.modules()] == modes
        assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    plain = make_evaluator(args=args)
    with plain.bound(model):
        trained = gradients(plain, model, "train")
    assert torch.equal(iterated[0], trained[0])


def draws(seed: int) -> tuple[float, float, float]:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return torch.rand(()).item(), random.random(), np.random.rand()


def test_hooks_fire_once_a_step_across_epochs() -> None:
    evaluator, before, after = make_evaluator(args={"lr_scheduler_type": "cosine"}), [], []
    model = make_bert()
    old = weights(model)
    with evaluator.bound(model):
        evaluator.before_step(lambda event: before.append(event.step))
        evaluator.after_step(lambda event: after.append(event.step))
        evaluator.after_step(lambda event: assert_equal_weights(event.model, old))
        evaluator.iterate(7)
    assert before == after == [1, 2, 3, 4, 5, 6, 7]


def test_a_loop_that_would_go_on_is_left() -> None:
    class Restless(Trainer):
        def set_initial_training_values(self, args: Any, *more: Any) -> Any:
            args.max_steps = 50
            return super().set_initial_training_values(args, *more)

    evaluator, steps = make_evaluator(Restless), []
    with evaluator.bound(make_bert()):
        evaluator.before_step(lambda event: steps.append(event.step))
        evaluator.iterate(2)
    assert steps == [1, 2]


@pytest.mark.parametrize("make", [make_bert, make_gpt2])
def test_example_inputs_have_no_labels_and_can_be_captured(make: Any) -> None:
    model = OneOutput(make().eval(), "logits")
    rows = Rows(language=make is make_gpt2)
    evaluator = make_evaluator(train_dataset=rows)
    with evaluator.bound(model):
        args, kwargs = evaluator.example_inputs(2)
        assert args == () and set(kwargs) == {"input_ids", "attention_mask"}
        assert kwargs["input_ids"].shape == (2, 6)
        assert all(any(torch.equal(row, tokens) for tokens in rows.tokens) for row in kwargs["input_ids"])
        capture(model, args, kwargs)
        assert not model.model._forward_pre_hooks


def test_example_inputs_of_images_and_of_a_dummy() -> None:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    model = ViTForImageClassification(config)
    images = [{"pixel_values": torch.full((3, 8, 8), float(n)), "labels": n % 2} for n in range(8)]
    evaluator = make_evaluator(train_dataset=images, eval_dataset=images)
    with evaluator.bound(model):
        _, kwargs = evaluator.example_inputs()
        assert set(kwargs) == {"pixel_values"} and kwargs["pixel_values"].shape == (4, 3, 8, 8)
    evaluator = make_evaluator(dummy_input={"pixel_values": torch.ones(1, 3, 8, 8)}, train_dataset=None)
    with evaluator.bound(model):
        assert evaluator.capabilities == {"evaluate", "example_inputs"}
        _, kwargs = evaluator.example_inputs(3)
        assert torch.equal(kwargs["pixel_values"], torch.ones(3, 3, 8, 8))


def test_example_inputs_of_an_encoder_decoder_do_without_labels() -> None:
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config).eval()
    evaluator = make_evaluator(train_dataset=Rows(language=True))
    with evaluator.bound(model):
        _, kwargs = evaluator.example_inputs(2)
        assert set(kwargs) == {"input_ids", "attention_mask", "decoder_input_ids"}
        assert model(**kwargs).logits.shape == (2, 6, VOCABULARY)
        assert evaluator.train(max_steps=1).steps == 1


def test_a_trainer_that_never_calls_the_model_shows_no_inputs() -> None:
    class Sideways(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            return model.classifier.weight.sum()

    evaluator = make_evaluator(Sideways)
    with evaluator.bound(make_bert()), pytest.raises(UserError, match="the Trainer never calls the model"):
        evaluator.example_inputs()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            BertModel(make_bert().config),
            "BertModel returned no loss for input_ids, attention_mask; choose a model with",
        ),
        (nn.Linear(2, 2), "Linear takes no labels, so it computes no loss"),
    ],
)
def test_a_model_without_a_loss_is_told(model: nn.Module, message: str) -> None:
    evaluator = make_evaluator()
    with evaluator.bound(model):
        for call in (lambda: evaluator.iterate(1), lambda: evaluator.train(max_steps=1)):
            with pytest.raises(UserError, match=message):
                call()


def test_batches_of_a_frozen_model_are_shown() -> None:
    model, seen = make_bert().requires_grad_(False), list[Any]()
    evaluator = make_evaluator()
    model.register_forward_hook(lambda module, args, kwargs, output: seen.append(kwargs), with_kwargs=True)
    with evaluator.bound(model):
        evaluator.iterate(3)
    assert len(seen) == 3
