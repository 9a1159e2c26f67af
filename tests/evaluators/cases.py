"""A tiny classification problem, a model with dropout and batch-norm, and loops as users write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.trace import trace

NUM_BATCHES = 6
BATCH_SIZE = 8


def make_model(seed: int = 0, hidden: int = 12) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 3))


def make_dataset(num_samples: int = NUM_BATCHES * BATCH_SIZE) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(num_samples, 5, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long())


def make_loader(seed: int = 0, num_samples: int = NUM_BATCHES * BATCH_SIZE) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(make_dataset(num_samples), batch_size=BATCH_SIZE, shuffle=True, generator=generator)


def training_step(batch: Any, model: nn.Module) -> Tensor:
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


def tuple_step(batch: Any, model: nn.Module) -> tuple[Tensor, Tensor]:
    inputs, targets = batch
    outputs = model(inputs)
    return nn.functional.cross_entropy(outputs, targets), outputs


def dict_step(batch: Any, model: nn.Module) -> dict[str, Tensor]:
    loss, outputs = tuple_step(batch, model)
    return {"loss": loss, "outputs": outputs}


def user_loop(
    model: nn.Module,
    optimizers: Any,
    training_step: Callable[[Any, nn.Module], Tensor],
    lr_schedulers: Any,
    max_steps: int | None,
    max_epochs: int | None,
) -> None:
    """What a user's own loop looks like."""
    model.train()
    step, epoch = 0, 0
    while max_epochs is None or epoch < max_epochs:
        for batch in make_loader(epoch):
            optimizers.zero_grad()
            training_step(batch, model).backward()
            optimizers.step()
            if lr_schedulers is not None:
                lr_schedulers.step()
            step += 1
            if step == max_steps:
                return
        epoch += 1


def make_evaluator(model: nn.Module, loop: Any = user_loop, step: Any = training_step, **more: Any) -> TorchEvaluator:
    optimizers = more.pop("optimizers", None) or trace(torch.optim.SGD)(model.parameters(), lr=0.1, momentum=0.9)
    return TorchEvaluator(loop, optimizers, step, **more)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal_weights(found: nn.Module | dict[str, Tensor], expected: nn.Module | dict[str, Tensor]) -> None:
    """Bit by bit."""
    found = found if isinstance(found, dict) else found.state_dict()
    expected = expected if isinstance(expected, dict) else expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
