"""Tiny models of transformers, data for them, and a bare Trainer to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from nnicompress.evaluators.transformers.evaluator import TransformersEvaluator
from nnicompress.events import Listener, silent
from nnicompress.trace import trace

VOCABULARY, LENGTH, BATCH_SIZE = 30, 6, 4


class Rows(Dataset[dict[str, Tensor]]):
    """Token sequences with a class, or with labels for each token."""

    def __init__(self, size: int = 20, *, language: bool = False, noise: bool = False) -> None:
        generator = torch.Generator().manual_seed(size)
        self.tokens = torch.randint(2, VOCABULARY, (size, LENGTH), generator=generator)
        self.labels = self.tokens.clone() if language else (self.tokens[:, 0] > VOCABULARY // 2).long()
        if language:  # each row has another number of tokens that count
            for row in range(size):
                self.labels[row, : row % (LENGTH - 1)] = -100
        self.noise = noise

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        tokens = self.tokens[row]
        if self.noise:  # random augmentation, from the global generator
            tokens = torch.where(torch.rand(LENGTH) < 0.2, torch.ones_like(tokens), tokens)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": self.labels[row]}


def make_bert(seed: int = 0, intermediate: int = 24) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=intermediate,
            max_position_embeddings=LENGTH,
        )
    )


def make_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=LENGTH, eos_token_id=0)
    )


def settings(**more: Any) -> dict[str, Any]:
    """Arguments of TrainingArguments."""
    return {
        "per_device_train_batch_size": BATCH_SIZE,
        "per_device_eval_batch_size": BATCH_SIZE,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 5,
        **more,
    }


def make_evaluator(cls: type[Trainer] = Trainer, *, args: Any = None, **more: Any) -> TransformersEvaluator:
    """With arguments of the evaluator picked out of `more`; the others are the Trainer's."""
    names = ("optimizers", "lr_schedulers", "metric", "test_dataset", "dummy_input", "listener", "data")
    own = {name: more.pop(name) for name in names if name in more}
    args = trace(TrainingArguments)(**settings(**(args or {}))) if not hasattr(args, "output_dir") else args
    given = {"train_dataset": Rows(), "eval_dataset": Rows(10), **more}
    return TransformersEvaluator(trace(cls)(args=args, **given), **own)


class Losses(TrainerCallback):
    """What a Trainer logs as the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "loss" in (logs := kwargs["logs"]):
            self.losses.append(logs["loss"])


def bare_training(
    model: nn.Module, folder: Path, cls: type[Trainer] = Trainer, args: Any = None, **more: Any
) -> tuple[Trainer, list[float]]:
    """The same training without nnicompress; returns the Trainer and the losses that it logged, one a step."""
    losses = Losses()
    given = {"train_dataset": Rows(), "eval_dataset": Rows(10), **more}
    arguments = TrainingArguments(str(folder), **{**settings(**(args or {})), "logging_steps": 1, "disable_tqdm": True})
    given["callbacks"] = [*given.get("callbacks", ()), losses]
    trainer = cls(model=model, args=arguments, **given)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer, losses.losses


def for_the_doctor(listener: Listener = silent) -> TransformersEvaluator:
    """An evaluator as `nnicompress doctor` builds it."""
    return make_evaluator(listener=listener)
