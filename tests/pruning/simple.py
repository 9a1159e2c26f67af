"""A small evaluator, small networks and real images for the tests of pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from nnicompress.errors import UserError
from nnicompress.evaluators.contract import Handle, ModelInput, StepEvent, TrainResult
from nnicompress.evaluators.registry import Registry

Batch = tuple[Tensor, Tensor]


def digits(num_batches: int = 8, batch_size: int = 32) -> list[Batch]:
    """Batches of real 8x8 images, scaled to [0, 1], shape [batch, 1, 8, 8]."""
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels)
    starts = range(0, num_batches * batch_size, batch_size)
    return [(inputs[i : i + batch_size], targets[i : i + batch_size]) for i in starts]


class ConvNet(nn.Module):
    """conv - bn - relu - residual conv - flatten - linear: two widths, one of them shared by three layers."""

    def __init__(self, width: int = 8, inner: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.up = nn.Conv2d(width, inner, 1)
        self.down = nn.Conv2d(inner, width, 1, bias=False)
        self.head = nn.Linear(width * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(torch.max_pool2d(x, 2).flatten(1))


class SimpleEvaluator:
    """The contract in the shortest honest form: cross-entropy, SGD, batches in a fixed order."""

    capabilities = frozenset({"train", "iterate", "evaluate", "example_inputs"})

    def __init__(
        self,
        batches: list[Batch] | None = None,
        optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.1),
        clip_norm: float | None = None,
    ) -> None:
        self.batches = digits() if batches is None else batches
        self._optimizer, self._clip_norm = optimizer, clip_norm
        self._model: nn.Module | None = None
        self._before: Registry[Any] = Registry()
        self._after: Registry[Any] = Registry()
        self._evaluate: Registry[Any] = Registry()
        self.trainings: list[int] = []
        self.clip_norms: list[float] = []

    @property
    def model(self) -> nn.Module:
        assert self._model is not None, "nothing is bound"
        return self._model

    @contextmanager
    def bound(self, model: nn.Module) -> Iterator[nn.Module]:
        self._model = model
        yield model
        self._model = None

    def loss(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def train(self, *, max_steps: int | None = None, max_epochs: int | None = None) -> TrainResult:
        optimizer = self._optimizer(self.model.parameters())
        steps = max_steps if max_steps is not None else (max_epochs or 1) * len(self.batches)
        self.model.train()
        losses = []
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss = self.loss(self.batches[(step - 1) % len(self.batches)])
            loss.backward()
            if self._clip_norm is not None:
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
                self.clip_norms.append(float(norm))
            event = StepEvent(step, self.model)
            for hook in self._before:
                hook(event)
            optimizer.step()
            for hook in self._after:
                hook(event)
            losses.append(float(loss.detach()))
        self.trainings.append(steps)
        return TrainResult(steps, None, tuple(losses))

    def iterate(self, num_batches: int) -> None:
        self.model.eval()
        for step in range(1, num_batches + 1):
            self.model.zero_grad()
            self.loss(self.batches[(step - 1) % len(self.batches)]).backward()
            for hook in self._before:
                hook(StepEvent(step, self.model))
        self.model.zero_grad()

    def evaluate(self, split: str = "validation") -> dict[str, float]:
        for hook in self._evaluate:
            hook(self.model)
        self.model.eval()
        with torch.no_grad():
            hits = [(self.model(x).argmax(1) == y).float().mean().item() for x, y in self.batches]
        return {"default": sum(hits) / len(hits)}

    def example_inputs(self, batch_size: int | None = None) -> ModelInput:
        return (self.batches[0][0][:batch_size],), {}

    def before_step(self, hook: Any) -> Handle:
        return self._before.add(hook)

    def after_step(self, hook: Any) -> Handle:
        return self._after.add(hook)

    def before_evaluate(self, hook: Any) -> Handle:
        return self._evaluate.add(hook)

    def add_penalty(self, penalty: Any) -> Handle:
        raise NotImplementedError

    def add_parameters(self, parameters: Any, **settings: Any) -> Handle:
        raise NotImplementedError

    def require(self, capability: str, *, by: str, why: str) -> None:
        if capability not in self.capabilities:
            raise UserError(f"{by} needs {capability} {why}")

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError
