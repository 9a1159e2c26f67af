"""A training step through each evaluator, with Taylor scores gathered at every step, beside the engine's own step.

ResNet-18 on 3x64x64, batch 16, SGD with momentum, in one process and one thread. Each engine trains bare and through
its evaluator in turn, which one first alternates; the first steps of each turn are left out. What the pruner computes
is timed inside the hook: a step through the evaluator should cost what a bare one does, plus that. Processor time is
taken, which other people's work on the machine disturbs less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Trainer as LightningTrainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

import nnicompress
from nnicompress.evaluators.base import EvaluatorBase
from nnicompress.evaluators.contract import StepEvent
from nnicompress.evaluators.lightning.classifier import Classifier
from nnicompress.graph import capture, find_channel_groups
from nnicompress.models.resnet import resnet18
from nnicompress.pruning.importance import importance_of
from nnicompress.pruning.scores import width_scores
from nnicompress.pruning.settings import ImportanceSettings

CLASSES, BATCH, WARM = 10, 16, 3
OPTIMIZER: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9}
clock = time.process_time


class Images(Dataset[Any]):
    """Images of noise, as pairs or as mappings."""

    def __init__(self, size: int, *, named: bool) -> None:
        self.images, self.labels = torch.randn(BATCH, 3, 64, 64), torch.randint(CLASSES, (BATCH,))
        self.size, self.named = size, named

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        image, label = self.images[index % BATCH], self.labels[index % BATCH]
        return {"pixel_values": image, "labels": label} if self.named else (image, label)


class Net(nn.Module):
    """ResNet-18 that also takes labels, as a Trainer passes them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet18(num_classes=CLASSES)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        """Logits, or the loss with them."""
        logits = self.net(pixel_values)
        return logits if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Clocked(SGD):
    """Writes the time of each step into `times`."""

    times: list[float] = []

    def step(self, closure: Any = None) -> Any:
        """A step of SGD."""
        result = super().step(closure)
        self.times.append(clock())
        return result


def loop(model: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: int, max_epochs: None) -> None:
    """A native loop."""
    model.train()
    for batch in DataLoader(Images(BATCH * max_steps, named=False), batch_size=BATCH):
        optimizer.zero_grad()
        step(batch, model).backward()
        optimizer.step()


def training_step(batch: Any, model: nn.Module) -> Tensor:
    """Cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Module(Classifier):
    """The LightningModule of the bare run, with its optimizer."""

    def configure_optimizers(self) -> Any:
        """SGD."""
        return Clocked(self.model.parameters(), **OPTIMIZER)


def lightning_settings(steps: int) -> dict[str, Any]:
    """A Trainer that only trains."""
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "barebones")
    return {**dict.fromkeys(off[:-1], False), "accelerator": "cpu", "max_steps": steps, "limit_val_batches": 0}


def arguments(steps: int, folder: str) -> TrainingArguments:
    """A Trainer that only trains."""
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
    )


def bare(engine: str, model: nn.Module, steps: int) -> None:
    """The engine's own training."""
    if engine == "torch":
        loop(model, Clocked(model.parameters(), **OPTIMIZER), training_step, None, steps, None)
    elif engine == "lightning":
        data = DataLoader(Images(BATCH * steps, named=False), batch_size=BATCH)
        LightningTrainer(**lightning_settings(steps)).fit(Module(model, nn.CrossEntropyLoss()), data)
    else:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=model,
                args=arguments(steps, folder),
                train_dataset=Images(BATCH * steps, named=True),
                optimizer_cls_and_kwargs=(Clocked, OPTIMIZER),
            )
            trainer.train()


def evaluator_of(engine: str, model: nn.Module, steps: int) -> EvaluatorBase:
    """The same training, packaged."""
    optimizer = nnicompress.trace(Clocked)(model.parameters(), **OPTIMIZER)
    if engine == "torch":
        return nnicompress.TorchEvaluator(loop, optimizer, training_step)
    if engine == "lightning":
        data = {"train": DataLoader(Images(BATCH * steps, named=False), batch_size=BATCH)}
        trainer = nnicompress.trace(LightningTrainer)(**lightning_settings(steps))
        module = nnicompress.trace(Classifier)(loss=nn.CrossEntropyLoss())
        return nnicompress.LightningEvaluator(trainer, data, module, optimizers=optimizer)
    trainer = nnicompress.trace(Trainer)(
        args=arguments(steps, tempfile.mkdtemp()), train_dataset=Images(BATCH * steps, named=True)
    )
    return nnicompress.TransformersEvaluator(
        trainer, optimizers=optimizer, lr_schedulers=nnicompress.trace(torch.optim.lr_scheduler.LambdaLR)(lambda s: 1.0)
    )


def taylor_hook(model: nn.Module, seconds: list[float]) -> Callable[[StepEvent], None]:
    """What the pruner does before each step: scores of all widths; its seconds go into the list."""
    groups = find_channel_groups(capture(model, (torch.randn(2, 3, 64, 64),)))
    taylor = importance_of(ImportanceSettings(name="taylor"))

    def score(event: StepEvent) -> None:
        started = clock()
        parameters = dict(event.model.named_parameters())
        width_scores(parameters, {name: p.grad for name, p in parameters.items()}, taylor, groups.widths)
        seconds.append(clock() - started)

    return score


def intervals() -> list[float]:
    """The seconds of each step of the last training but the first ones."""
    times, Clocked.times[:] = list(Clocked.times), []
    return [b - a for a, b in zip(times, times[1:], strict=False)][WARM:]


def main() -> None:
    """Print a line an engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    for engine in ("torch", "lightning", "transformers"):
        model, arithmetic = Net(), list[float]()
        hook, evaluator = taylor_hook(model, arithmetic), evaluator_of(engine, model, options.steps)

        def through(evaluator: EvaluatorBase = evaluator, hook: Any = hook, model: nn.Module = model) -> None:
            with evaluator.bound(model):
                evaluator.before_step(hook)
                evaluator.train(max_steps=options.steps)

        def alone(engine: str = engine, model: nn.Module = model) -> None:
            bare(engine, model, options.steps)

        found: dict[Any, list[float]] = {through: [], alone: []}
        for turn in range(options.turns):
            for run in (through, alone) if turn % 2 else (alone, through):
                run()
                found[run] += intervals()
        plain, ours, scores = (statistics.median(x) * 1e3 for x in (found[alone], found[through], arithmetic))
        print(
            f"{engine:13} bare {plain:6.1f} ms   Taylor {scores:5.2f} ms   through the evaluator {ours:6.1f} ms   "
            f"ratio {ours / (plain + scores):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
