"""Run by torchrun, or by itself: trains and prunes with an engine, and writes what it found to OUT/RANK.pt."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from pytorch_lightning import Trainer as LightningTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from transformers import Trainer, TrainingArguments

from nnicompress import distributed
from nnicompress.evaluators.base import EvaluatorBase
from nnicompress.evaluators.lightning.classifier import Classifier
from nnicompress.evaluators.lightning.evaluator import LightningEvaluator
from nnicompress.evaluators.transformers.evaluator import TransformersEvaluator
from nnicompress.pruning.pruner import Pruner
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.trace import trace
from tests.evaluators.test_same_result import Samples

GLOBAL_BATCH = 16
TARGETS = [{"op_types": ["Conv2d", "Linear"], "exclude_op_names": ["head"], "sparse_ratio": 0.5}]


class FrozenNorm(nn.BatchNorm2d):
    """Batch-norm whose statistics stay as they are."""

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


class Net(nn.Module):
    """Convolutions and a frozen norm; given labels it returns its loss too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 3, padding=1), FrozenNorm(12)
        self.hidden, self.head = nn.Linear(12 * 16, 24), nn.Linear(24, 10)
        self.train()  # the norm is frozen from now on, whether or not an engine calls it

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        x = nn.functional.max_pool2d(self.norm(self.stem(pixel_values)).relu(), 2)
        logits = self.head(self.hidden(x.flatten(1)).relu())
        if labels is None:
            return logits
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def in_order(samples: Samples) -> DistributedSampler[Any] | None:
    """Each process's share, in order: the sampler that Lightning would put in shuffles whatever the loader says."""
    return DistributedSampler(samples, shuffle=False) if distributed.world_size() > 1 else None


def evaluator_of(engine: str, model: nn.Module, processes: int) -> EvaluatorBase:
    optimizer = trace(torch.optim.SGD)(model.parameters(), lr=0.05, momentum=0.9)
    size, samples = GLOBAL_BATCH // processes, Samples(named=False)
    if engine == "lightning":
        together = {"strategy": "ddp", "devices": processes} if processes > 1 else {"devices": 1}
        trainer = trace(LightningTrainer)(accelerator="cpu", gradient_clip_val=1.0, **together)
        loader = DataLoader(samples, batch_size=size, sampler=in_order(samples))
        data = {"train": loader, "validation": loader}
        return LightningEvaluator(trainer, data, trace(Classifier)(loss=nn.CrossEntropyLoss()), optimizers=optimizer)
    args = trace(TrainingArguments)(
        per_device_train_batch_size=size, train_sampling_strategy="sequential", use_cpu=True, max_grad_norm=1.0
    )
    trainer = trace(Trainer)(args=args, train_dataset=Samples(named=True), eval_dataset=Samples(named=True))
    scheduler = trace(torch.optim.lr_scheduler.LinearLR)(start_factor=1.0, end_factor=1.0)
    return TransformersEvaluator(trainer, optimizers=optimizer, lr_schedulers=scheduler)


def main(engine: str, out: str) -> None:
    """Train, prune by Taylor importance, fine-tune, measure."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = Net()
    with distributed.joined():
        evaluator = evaluator_of(engine, model, distributed.world_size())
        with evaluator.bound(model):
            losses = list(evaluator.train(max_epochs=1).losses)
        pruned = Pruner(TARGETS, evaluator, importance={"name": "taylor", "training_steps": 8}).compress(model)
        with evaluator.bound(model):
            pruned.masks.attach(evaluator)
            losses += evaluator.train(max_steps=8).losses
            metrics = evaluator.evaluate()
        torch.manual_seed(3)
        fresh = Net()
        quantized: dict[str, Any] = {}
        for method in ("observed", "lsq_plus"):
            using = evaluator_of(engine, fresh, distributed.world_size())
            late = {"simulate_from": 3}
            quantizer = Quantizer([{}], using, method=method, calibration_steps=4, schedule=late)
            result = quantizer.compress(fresh, max_steps=8)
            quantized |= {f"{method} {place} scale": tensor.scale for place, tensor in result.tensors.items()}
            quantized |= {f"{method} {place} zero": tensor.zero_point for place, tensor in result.tensors.items()}
            quantized |= {f"{method} {name}": tensor.clone() for name, tensor in fresh.state_dict().items()}
        found = {"masks": pruned.masks.keep, "weights": model.state_dict(), "losses": losses, "metrics": metrics}
        found["quantized"] = quantized
        torch.save(found, f"{out}/{distributed.rank()}.pt")
        assert type(model) is Net and os.environ.get("WORLD_SIZE", "1") == str(distributed.world_size())


if __name__ == "__main__":
    main(*sys.argv[1:])
