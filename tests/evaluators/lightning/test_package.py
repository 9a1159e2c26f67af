"""The unified `lightning` package is served as `pytorch_lightning` is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.evaluators.lightning.package import Package
from nnicompress.trace import trace
from tests.evaluators.cases import assert_equal_weights, make_model
from tests.evaluators.lightning.cases import Net, make_evaluator


def test_the_package_of_a_class_and_of_an_object() -> None:
    found = Package.of(Net), Package.of(Net())
    assert [package and package.name for package in found] == ["pytorch_lightning", "pytorch_lightning"]
    assert Package.of(make_model()) is None


def test_the_unified_package() -> None:
    import lightning.pytorch as lightning

    class Unified(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = make_model()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        validation_step, configure_optimizers = Net.validation_step, Net.configure_optimizers

    expected, model = Net(), Unified()
    own, evaluator = make_evaluator(), make_evaluator(trace(lightning.Trainer)(accelerator="cpu"))
    torch.manual_seed(1)
    with own.bound(expected):
        wanted = own.train(max_epochs=2)
    torch.manual_seed(1)
    with evaluator.bound(model):
        evaluator.iterate(2)
        assert evaluator.train(max_epochs=2) == wanted
        assert evaluator.evaluate()["default"] == wanted.metrics[-1]["default"]
    assert_equal_weights(model, expected)
