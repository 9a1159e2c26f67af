"""A small network, its training and its quantizer for the tests of quantization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.result import QuantizationResult
from nnicompress.trace import trace

BATCHES = 6
METHODS: dict[str, dict[str, Any]] = {
    "observed": {},
    "lsq": {"method": "lsq"},
    "lsq_plus": {"method": "lsq_plus"},
    "dorefa": {"method": "dorefa", "gradient_bits": 6},
    "bnn": {"method": "bnn", "backend": "none"},
}
FOUR_BITS = {"target_settings": {"weight": {"quant_dtype": "int4"}}}


class Net(nn.Module):
    """Convolution, batch norm, a residual add, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.block, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.middle(x)).relu()
        return self.head(x.mean(dim=(2, 3)))

    def middle(self, x: Tensor) -> Tensor:
        return self.block(x)


def make_net(cls: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return cls()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCHES, 8, 2, 6, 6, generator=generator)
    return [(x, (x.mean(dim=(1, 2, 3)) > 0).long()) for x in images]


def loop(model: nn.Module, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
    model.train()
    steps = 0
    for _ in range(max_epochs or 10**9):
        for batch in batches():
            optimizers.zero_grad()
            step(batch, model).backward()
            optimizers.step()
            steps += 1
            if steps == max_steps:
                return


def training_step(batch: Any, model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def make_evaluator(model: nn.Module, training_func: Any = loop) -> TorchEvaluator:
    return TorchEvaluator(
        training_func, trace(torch.optim.SGD)(model.parameters(), lr=0.05, momentum=0.9), training_step
    )


def compressed(model: nn.Module, **settings: Any) -> QuantizationResult:
    length = {} if settings.get("trains") is False else {"max_steps": settings.pop("max_steps", 8)}
    target = settings.pop("target", FOUR_BITS)
    settings.setdefault("calibration_steps", 3)
    return Quantizer([target], make_evaluator(model), **settings).compress(model, **length)


class One(nn.Module):
    """A network of one layer; its training makes `upstream` the gradient of the output."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.layer = nn.Linear(4, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.upstream = torch.randn(8, 3, generator=generator)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def train_one(model: One, lr: float, steps: int, **settings: Any) -> QuantizationResult:
    def train(model: nn.Module, optimizers: Any, step: Any, schedulers: Any, max_steps: Any, max_epochs: Any) -> None:
        model.train()
        for x, _ in batches()[:max_steps]:
            optimizers.zero_grad()
            step(x[:, 0, 0, :4], model).backward()
            optimizers.step()

    def loss(x: Tensor, model: Any) -> Tensor:
        model.seen.append(model.layer.weight.detach().clone())
        return (model(x) * model.upstream).sum()

    evaluator = TorchEvaluator(train, trace(torch.optim.SGD)(model.parameters(), lr=lr), loss)
    return Quantizer([FOUR_BITS], evaluator, calibration_steps=1, **settings).compress(model, max_steps=steps)
