"""After any call nothing of a Trainer or of accelerate is left on the model, nor in the process."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from transformers import TrainingArguments
from transformers.utils import logging

from tests.evaluators.transformers.cases import Rows, make_bert, make_evaluator, make_gpt2, settings

LANGUAGE: dict[str, Any] = {"train_dataset": Rows(language=True), "eval_dataset": Rows(10, language=True)}


def traces(model: nn.Module) -> Any:
    """Attributes of every module by identity, number of hooks, tensors, and what a Trainer sets on the config."""
    found = {}
    for name, module in model.named_modules():
        own = {key: id(value) for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
        hooks = [len(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
        found[name] = (type(module), own, set(vars(module)), hooks)
    tensors = {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in model.state_dict().items()}
    return found, tensors, model.config.use_cache


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"bf16": True},
        {"activation_checkpointing": True},
        {"bf16_full_eval": True},
        {"neftune_noise_alpha": 5.0},
        {"use_cache": True},
    ],
    ids=str,
)
def test_the_model_is_as_it_was(args: dict[str, Any]) -> None:
    model = make_gpt2()
    model.config.use_cache = not args.get("use_cache", False)
    before, forward = traces(model), model.forward
    evaluator = make_evaluator(args=args, **LANGUAGE)
    with evaluator.bound(model):
        for call in (
            lambda: evaluator.iterate(1),
            lambda: evaluator.example_inputs(),
            lambda: evaluator.evaluate(),
            lambda: evaluator.train(max_steps=2),
        ):
            call()
            assert traces(model) == before and model.forward == forward


def test_it_is_put_back_when_a_training_fails() -> None:
    model = make_bert()
    before = traces(model)
    evaluator = make_evaluator(args={"bf16": True})

    def fail(event: Any) -> None:
        raise RuntimeError("stopped")

    with evaluator.bound(model):
        evaluator.after_step(fail)
        with pytest.raises(RuntimeError, match="stopped"):
            evaluator.train(max_steps=2)
        assert traces(model) == before


def test_precision_is_chosen_anew_and_the_users_accelerator_survives() -> None:
    mine = Accelerator(cpu=True)
    environment, verbosity = dict(os.environ), logging.get_verbosity()
    model, dtypes = make_bert(), []
    model.classifier.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    for bf16 in (True, False, True):
        evaluator = make_evaluator(args={"bf16": bf16, "log_level": "error"})
        with evaluator.bound(model):
            evaluator.train(max_steps=1)
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert mine.mixed_precision == "no" and mine.device.type == "cpu" and mine.num_processes == 1
    assert AcceleratorState().mixed_precision == "no"
    assert dict(os.environ) == environment and logging.get_verbosity() == verbosity


def test_what_the_user_gave_is_as_it_was() -> None:
    args = TrainingArguments(**settings(eval_strategy="epoch", accelerator_config={"gradient_accumulation_kwargs": {}}))
    before, dataset, choice = args.to_dict(), Rows(), (torch.optim.SGD, {"lr": 0.1})
    rows = dict(vars(dataset))
    evaluator = make_evaluator(args=args, train_dataset=dataset, optimizer_cls_and_kwargs=choice)
    with evaluator.bound(make_bert()):
        evaluator.train(max_steps=2)
        evaluator.evaluate()
    assert args.to_dict() == before and vars(dataset) == rows and choice == (torch.optim.SGD, {"lr": 0.1})
    assert args.device.type == "cpu"
