"""One training, three engines: losses, importance, masks and weights are those of the torch evaluator.

Where the engines' defaults differ they are set alike: batches in the data's order, whole ones only; one optimizer with
one group; a scheduler stepped after each optimizer step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer as LightningTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

from nnicompress.data.digits import Digits
from nnicompress.evaluators.base import EvaluatorBase
from nnicompress.evaluators.contract import TrainResult
from nnicompress.evaluators.lightning.classifier import Classifier
from nnicompress.evaluators.lightning.evaluator import LightningEvaluator
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.evaluators.training_step import SupervisedStep
from nnicompress.evaluators.transformers.evaluator import TransformersEvaluator
from nnicompress.events import StepDone
from nnicompress.graph import capture, find_channel_groups
from nnicompress.pruning.importance import IMPORTANCES, importance_of
from nnicompress.pruning.pruner import Pruner, PruningResult
from nnicompress.pruning.scores import Scores, measure
from nnicompress.pruning.settings import ImportanceSettings, PrunerSettings
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.result import QuantizationResult
from nnicompress.quantization.settings import QuantizerSettings
from nnicompress.trace import trace
from tests.quantization.test_presets import presets

BATCH, NUM_BATCHES = 16, 12


class Net(nn.Module):
    """A residual network with batch-norm; given labels it returns its loss too, as a Trainer expects it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.up, self.down = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 1)
        self.hidden, self.head = nn.Linear(12 * 16, 24), nn.Linear(24, 10)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        x = self.norm(self.stem(pixel_values)).relu()
        x = x + self.down(self.up(x).relu())
        logits = self.head(self.hidden(nn.functional.max_pool2d(x, 2).flatten(1)).relu())
        if labels is None:
            return logits
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Samples(Dataset[Any]):
    """The first images of the digits' training role, as mappings for a Trainer or as pairs."""

    def __init__(self, *, named: bool) -> None:
        self.images, self.labels = Digits(shift=0).dataset("train").__getitems__(list(range(BATCH * NUM_BATCHES)))
        self.named = named

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        image, label = self.images[index], self.labels[index]
        return {"pixel_values": image, "labels": label} if self.named else (image, label)


def loader(seed: int = 0) -> DataLoader[Any]:
    return DataLoader(Samples(named=False), batch_size=BATCH, drop_last=True)


def make_model() -> Net:
    torch.manual_seed(3)
    return Net()


def optimization() -> dict[str, Any]:
    return {
        "optimizers": trace(torch.optim.SGD)(lr=0.05, momentum=0.9, weight_decay=1e-3),
        "lr_schedulers": trace(torch.optim.lr_scheduler.OneCycleLR)(max_lr=0.05),
    }


def with_parameters(model: nn.Module) -> dict[str, Any]:
    built = optimization()
    built["optimizers"] = trace(torch.optim.SGD)(model.parameters(), **built["optimizers"].kwargs)
    return built


def torch_evaluator(model: nn.Module, accumulate: int, clip: float = 1.0, **more: Any) -> EvaluatorBase:
    loop = TrainingLoop(loader, accumulate=accumulate, clip_norm=clip, validate_every=0)
    return TorchEvaluator(loop, training_step=SupervisedStep(nn.CrossEntropyLoss()), **with_parameters(model), **more)


def lightning_evaluator(model: nn.Module, accumulate: int, clip: float = 1.0, **more: Any) -> EvaluatorBase:
    trainer = trace(LightningTrainer)(
        accelerator="cpu", devices=1, accumulate_grad_batches=accumulate, gradient_clip_val=clip, limit_val_batches=0
    )
    data = {"train": loader, "validation": loader}
    return LightningEvaluator(
        trainer, data, trace(Classifier)(loss=nn.CrossEntropyLoss()), **with_parameters(model), **more
    )


def transformers_evaluator(model: nn.Module, accumulate: int, clip: float = 1.0, **more: Any) -> EvaluatorBase:
    args = trace(TrainingArguments)(
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=clip,
        train_sampling_strategy="sequential",
        dataloader_drop_last=True,
        use_cpu=True,
    )
    trainer = trace(Trainer)(args=args, train_dataset=Samples(named=True), eval_dataset=Samples(named=True))
    return TransformersEvaluator(trainer, **with_parameters(model), **more)


ENGINES: Mapping[str, Callable[..., EvaluatorBase]] = {
    "torch": torch_evaluator,
    "lightning": lightning_evaluator,
    "transformers": transformers_evaluator,
}
OTHERS = ["lightning", "transformers"]


def trained(engine: str, accumulate: int, **length: int) -> tuple[TrainResult, dict[str, Tensor]]:
    model = make_model()
    evaluator = ENGINES[engine](model, accumulate)
    with evaluator.bound(model):
        result = evaluator.train(**length)
    return result, dict(model.state_dict())


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("engine", OTHERS)
def test_losses_step_by_step_and_weights_agree(engine: str, accumulate: int) -> None:
    want, want_weights = trained("torch", accumulate, max_epochs=2)
    got, got_weights = trained(engine, accumulate, max_epochs=2)
    assert got.steps == want.steps == 2 * NUM_BATCHES // accumulate
    assert got.losses == pytest.approx(want.losses, abs=1e-6)
    assert len(got.losses) == want.steps and want.losses[-1] < 0.95 * want.losses[0]  # it learns
    assert largest_difference(got_weights, want_weights) <= 1e-6


def importance(engine: str) -> dict[str, Scores]:
    """Taylor scores of every width of a trained model, over all batches."""
    model = make_model()
    evaluator = ENGINES[engine](model, 1)
    with evaluator.bound(model):
        evaluator.train(max_epochs=1)
        args, kwargs = evaluator.example_inputs(2)
        groups = find_channel_groups(capture(model, args, kwargs))
        taylor = importance_of(ImportanceSettings(name="taylor"))
        return measure(evaluator, taylor, groups.widths, {}, training_steps=NUM_BATCHES, seed=None)


@pytest.mark.parametrize("engine", OTHERS)
def test_taylor_importance_agrees(engine: str) -> None:
    want, got = importance("torch"), importance(engine)
    assert got.keys() == want.keys() and len(want) == 3
    for name, scores in want.items():
        assert scores.max() > 1e-6
        np.testing.assert_allclose(got[name], scores, rtol=0, atol=1e-6 * scores.max())


GRADUALLY = {"name": "agp", "total_times": 3, "interval_steps": 4}
CHANNELS = {"targets": {"all": {"op_types": ["Conv2d", "Linear"], "exclude_op_names": ["head"], "sparse_ratio": 0.5}}}
COMPRESSORS: Mapping[str, Mapping[str, Any]] = {
    "taylor": {"importance": {"name": "taylor"}, "allocation": {"name": "global", "normalize": "none"}, **CHANNELS},
    "taylor, square of the sum": {"importance": {"name": "taylor", "aggregation": "square_of_sum"}, **CHANNELS},
    "taylor, gradually": {"importance": {"name": "taylor"}, "schedule": GRADUALLY, **CHANNELS},
    "l1": {"importance": {"name": "l1"}, **CHANNELS},
    "l2, inputs": {"importance": {"name": "l2"}, "granularity": "input_channel", **CHANNELS},
    "fpgm": {"importance": {"name": "fpgm"}, **CHANNELS},
    "slim": {
        "importance": {"name": "slim", "training_steps": 8, "regular_scale": 0.01},
        "targets": {"stem": {"op_names": ["stem"], "sparse_ratio": 0.5}},
    },
    "taylor on the batch norm": {
        "importance": {"name": "taylor_bn"},
        "targets": {"stem": {"op_names": ["stem"], "sparse_ratio": 0.5}},
    },
    "apoz": {"importance": {"name": "apoz", "training_steps": 4}, **CHANNELS},
    "mean activation": {"importance": {"name": "mean_activation", "training_steps": 4}, **CHANNELS},
    "lamp": {"importance": {"name": "lamp"}, "granularity": "element", "allocation": {"name": "global"}, **CHANNELS},
    "wanda": {"importance": {"name": "wanda", "training_steps": 4}, "granularity": "element", **CHANNELS},
    "movement, gradually": {
        "importance": {"name": "movement", "training_steps": 4},
        "granularity": "element",
        "schedule": GRADUALLY,
        **CHANNELS,
    },
    "soft movement": {"importance": {"name": "soft_movement", "training_steps": 8}, **CHANNELS},
    "2:4": {
        "importance": {"name": "wanda", "training_steps": 4},
        "granularity": "2:4",
        "targets": {"inner": {"op_names": ["up", "down", "hidden", "head"]}},
    },
    "wanda, of each output": {
        "importance": {"name": "wanda", "training_steps": 4},
        "granularity": "element",
        "allocation": {"within": "output"},
        **CHANNELS,
    },
    "l1 to half of the macs": {
        "importance": {"name": "l1"},
        "target": {"macs": 0.5},
        "allocation": {"name": "isomorphic"},
        **CHANNELS,
    },
    "lottery ticket": {
        "importance": {"name": "level"},
        "granularity": "element",
        "schedule": {"name": "lottery_ticket", "total_times": 2, "interval_steps": 6},
        **CHANNELS,
    },
    "random": {"importance": {"name": "random", "seed": 5}, **CHANNELS},
    "level": {"importance": {"name": "level"}, "granularity": "element", **CHANNELS},
    "level, blocks, gradually": {
        "importance": {"name": "level"},
        "granularity": [2, 1],
        "schedule": {**GRADUALLY, "name": "linear"},
        **CHANNELS,
    },
}


def compressed(engine: str, settings: Mapping[str, Any]) -> tuple[PruningResult, TrainResult, dict[str, Tensor]]:
    """Trained, pruned as `settings` say, and fine-tuned under the masks."""
    model = make_model()
    evaluator = ENGINES[engine](model, 1)
    with evaluator.bound(model):
        evaluator.train(max_epochs=1)
    found = Pruner(PrunerSettings.model_validate(settings), evaluator).compress(model)
    with evaluator.bound(model):
        found.masks.attach(evaluator)
        result = evaluator.train(max_steps=NUM_BATCHES)
    return found, result, dict(model.state_dict())


@functools.cache
def by_torch(name: str) -> tuple[PruningResult, TrainResult, dict[str, Tensor]]:
    return compressed("torch", COMPRESSORS[name])


def test_every_importance_that_ships_is_among_the_compressors() -> None:
    assert {settings["importance"]["name"] for settings in COMPRESSORS.values()} == set(IMPORTANCES)


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("engine", OTHERS)
def test_every_compressor_gives_the_masks_losses_and_weights_of_the_torch_evaluator(engine: str, name: str) -> None:
    want, want_result, want_weights = by_torch(name)
    got, got_result, got_weights = compressed(engine, COMPRESSORS[name])
    assert got.masks.keep.keys() == want.masks.keep.keys()
    for tensor, keep in want.masks.keep.items():
        assert torch.equal(got.masks.keep[tensor], keep), tensor
        assert not keep.all() or tensor.endswith("bias") or "norm" in tensor
    assert got_result.losses == pytest.approx(want_result.losses, abs=1e-6)
    assert largest_difference(got_weights, want_weights) <= 1e-6
    masked = {tensor: want_weights[tensor][~keep] for tensor, keep in want.masks.keep.items()}
    assert sum(len(values) for values in masked.values()) > 100
    assert all((got_weights[tensor][~want.masks.keep[tensor]] == 0).all() for tensor in masked)


QUANTIZERS: Mapping[str, Mapping[str, Any]] = {
    name: {**values, "calibration_steps": 3} for name, values in presets().items()
}
EXTRA_QUANTIZERS: Mapping[str, Mapping[str, Any]] = {
    "qat, late, four bits": {
        **QUANTIZERS["qat"],
        "schedule": {"simulate_from": 3, "observe_until": 9, "freeze_batch_norm_at": 6},
        "targets": {"all": {"target_settings": {"weight": {"quant_dtype": "int4"}}}},
    },
    "ptq, histogram": {**QUANTIZERS["ptq"], "observer": {"name": "histogram"}},
    "ptq, percentile": {**QUANTIZERS["ptq"], "observer": {"name": "percentile"}},
    "qat, folded": {**QUANTIZERS["qat"], "fold_batch_norm": True},
}
ALL_QUANTIZERS = {**QUANTIZERS, **EXTRA_QUANTIZERS}


def quantized(engine: str, name: str) -> tuple[QuantizationResult, list[float], dict[str, Tensor]]:
    """Trained, then quantized as `name` says; the losses are those of the quantized training's steps."""
    model = make_model()
    losses: list[float] = []

    def listen(event: Any) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)

    # The engines add up a norm in different orders, and the last bit of a scale may carry a weight over a rounding tie.
    evaluator = ENGINES[engine](model, 1, clip=1e6, listener=listen)
    with evaluator.bound(model):
        evaluator.train(max_epochs=1)
    losses.clear()
    settings = QuantizerSettings.model_validate(ALL_QUANTIZERS[name])
    found = Quantizer(settings, evaluator).compress(model, max_steps=NUM_BATCHES if settings.trains else None)
    return found, losses, dict(model.state_dict())


@functools.cache
def quantized_by_torch(name: str) -> tuple[QuantizationResult, list[float], dict[str, Tensor]]:
    return quantized("torch", name)


@pytest.mark.parametrize("name", ALL_QUANTIZERS)
@pytest.mark.parametrize("engine", OTHERS)
def test_every_quantizer_gives_the_ranges_losses_and_weights_of_the_torch_evaluator(engine: str, name: str) -> None:
    want, want_losses, want_weights = quantized_by_torch(name)
    got, got_losses, got_weights = quantized(engine, name)
    assert got.tensors.keys() == want.tensors.keys() and len(want.tensors) >= 5
    assert len(want_losses) == (NUM_BATCHES if ALL_QUANTIZERS[name].get("trains", True) else 0)
    assert got_losses == pytest.approx(want_losses, abs=1e-6)
    assert largest_difference(got_weights, want_weights) <= 1e-6
    for place, tensor in want.tensors.items():
        found = got.tensors[place]
        assert found.scheme == tensor.scheme
        torch.testing.assert_close(found.scale, tensor.scale, rtol=1e-5, atol=1e-7, msg=place)
        assert torch.equal(found.zero_point, tensor.zero_point), place
