"""A mask that grows while a callback averages the weights holds wherever they are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn

from nnicompress.pruning.masks import Masks
from nnicompress.trace import Traced, trace
from tests.evaluators.lightning.cases import Net, make_evaluator, make_trainer

MASK = torch.ones(12, 5, dtype=torch.bool)
MASK[:8] = False
BEGINS = 14
"""The step after which the mask holds: in the third of four epochs, when an average of the weights exists."""

AVERAGING: dict[str, Any] = {
    "SWA": trace(StochasticWeightAveraging)(swa_lrs=0.05, swa_epoch_start=1),
    "EMA": trace(EMAWeightAveraging)(decay=0.9),
}


class NoBatchNorm(Net):
    """SWA ends otherwise without batch-norm: it has no statistics to collect."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1] = nn.Identity()


def nonzero(weight: Tensor) -> int:
    return int(weight[~MASK].count_nonzero())


def train(averaging: Traced, net: type[Net], masked: bool, *callbacks: Any, **settings: Any) -> Net:
    """Train for four epochs, with a mask from `BEGINS` on."""
    model, masks = net(), Masks({"net.0.weight": MASK})
    evaluator = make_evaluator(make_trainer(callbacks=[averaging, *callbacks], **settings))

    def begin(event: Any) -> None:
        if event.step == BEGINS and masked:
            masks.attach(evaluator)

    with evaluator.bound(model):
        evaluator.after_step(begin)
        assert evaluator.train(max_epochs=4).steps == 24
    return model


both = pytest.mark.parametrize("averaging", AVERAGING.values(), ids=AVERAGING)
nets = pytest.mark.parametrize(("net", "masked"), [(Net, True), (NoBatchNorm, True), (Net, False)])


@both
@nets
def test_masked_weights_are_zero_at_validation(averaging: Traced, net: type[Net], masked: bool) -> None:
    seen: list[int] = []

    class Look(Callback):
        def on_validation_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            if trainer.global_step > BEGINS:
                seen.append(nonzero(module.net[0].weight))

    train(averaging, net, masked, Look())
    assert len(seen) >= 10 and set(seen) == {0 if masked else 40}


@both
@nets
def test_masked_weights_are_zero_in_checkpoints(averaging: Traced, net: type[Net], masked: bool, tmp_path: Any) -> None:
    """Averages included, and without a validation before."""
    checkpoint = ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5, save_on_train_epoch_end=False
    )
    train(averaging, net, masked, checkpoint, limit_val_batches=0)
    found = []
    for file in tmp_path.iterdir():
        saved = torch.load(file, weights_only=True)
        if saved["global_step"] > BEGINS:
            found.append(nonzero(saved["state_dict"]["net.0.weight"]))
            if "current_model_state" in saved:
                found.append(nonzero(saved["current_model_state"]["net.0.weight"]))
            for state in saved["callbacks"].values():
                if "average_model_state" in state:
                    found.append(nonzero(state["average_model_state"]["net.0.weight"]))
    assert len(found) >= 2 and set(found) == {0 if masked else 40}


@both
@nets
def test_masked_weights_are_zero_at_the_end(averaging: Traced, net: type[Net], masked: bool) -> None:
    model = train(averaging, net, masked, limit_val_batches=0)
    assert nonzero(model.net[0].weight) == (0 if masked else 40)
