"""Compressors do through a Lightning fit what they do through a native loop."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torchmetrics.classification import MulticlassAccuracy

from nnicompress.evaluators.contract import Evaluator
from nnicompress.evaluators.lightning.classifier import Classifier
from nnicompress.evaluators.loop import TrainingLoop
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.pruning.masks import Masks
from nnicompress.pruning.pruner import Pruner
from nnicompress.trace import trace
from tests.evaluators.cases import training_step
from tests.evaluators.lightning.cases import Net, loaders, make_evaluator, make_trainer, ordered


def convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)),
        nn.Conv1d(1, 8, 3, padding=1),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 3),
    )


@pytest.mark.parametrize("schedule", [None, "agp"])
def test_the_taylor_pruner_removes_the_same_channels_as_with_the_torch_evaluator(schedule: str | None) -> None:
    settings: dict[str, Any] = {"importance": {"name": "taylor", "training_steps": 8}}
    if schedule is not None:
        settings["schedule"] = {"name": "agp", "total_times": 2, "interval_steps": 7}
    results = []
    for engine in ("torch", "lightning"):
        model = convnet()
        optimizer = trace(SGD)(model.parameters(), lr=0.05, momentum=0.9)
        evaluator: Any
        if engine == "torch":
            evaluator = TorchEvaluator(TrainingLoop(lambda seed: ordered()), optimizer, training_step)
        else:
            module = trace(Classifier)(
                loss=nn.CrossEntropyLoss(), metric=trace(MulticlassAccuracy)(num_classes=3, average="micro")
            )
            evaluator = make_evaluator(module=module, optimizers=optimizer, metric="default")
        torch.manual_seed(1)
        targets = [{"op_types": ["Conv1d"], "sparse_ratio": 0.5}]
        results.append((Pruner(targets, evaluator, **settings).compress(model), model))
    (expected, native), (found, other) = results
    assert found.masks.keep.keys() == expected.masks.keep.keys() and expected.masks.removed > 0
    for name, mask in expected.masks.keep.items():
        assert torch.equal(found.masks.keep[name], mask), name
    for name, tensor in native.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}], ids=str
)
def test_masks_hold_after_every_step_and_count_in_no_norm(settings: dict[str, Any]) -> None:
    mask = torch.ones(12, 5, dtype=torch.bool)
    mask[:10] = False
    model, masks, seen = Net(), Masks({"net.0.weight": mask}), list[tuple[int, int]]()
    evaluator = make_evaluator(make_trainer(**settings))

    def before(event: Any) -> None:
        weight = model.net[0].weight
        assert int(weight.grad[mask].count_nonzero()) > 0
        seen.append((int(weight[~mask].count_nonzero()), int(weight.grad[~mask].count_nonzero())))
        if "gradient_clip_val" in settings:
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            assert norm.item() == pytest.approx(0.1, rel=1e-4)

    with evaluator.bound(model):
        masks.attach(evaluator)
        evaluator.before_step(before)
        evaluator.train(max_epochs=2)
    assert set(seen) == {(0, 0)} and len(seen) in (6, 12)
    assert int(model.net[0].weight[~mask].count_nonzero()) == 0


def test_it_is_an_evaluator() -> None:
    evaluator: Evaluator = make_evaluator(data=loaders())
    with evaluator.bound(Net()):
        assert isinstance(evaluator, Evaluator)


def test_torch_alone_does_not_import_lightning() -> None:
    code = (
        "import sys, nnicompress, nnicompress.evaluators.torch_evaluator, nnicompress.pruning.pruner; "
        "assert not {'pytorch_lightning', 'lightning', 'lightning_fabric'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
